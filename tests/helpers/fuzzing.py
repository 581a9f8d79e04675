"""Files whose values were broken at random."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

JUNK: list[Any] = [
    None, "", "x", "on", 0, -1, 1, 3.5, 1e300, -1e-300, math.inf, math.nan, 10**300, -(10**30), True, False,
    [], [None], [[]], {}, {"x": 1}, {"name": "sft"}, [{"path": 1}], "é\x00", "😀", "hf://", "://", "::", "~", "*",
    "[", "a" * 5000, "../..", "/", ".", ["a", "a"], {"path": {}}, "null", "{", {"": ""}, {"0": []},
]  # fmt: skip


def broken(values: Any, chance: random.Random) -> Any:
    """The values with one to three of them removed, renamed or replaced."""
    changed = copy.deepcopy(values)
    for _ in range(chance.randint(1, 3)):
        holder = changed
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = chance.choice(keys)
            inner = holder[key]
            if isinstance(inner, (dict, list)) and inner and chance.random() < 0.8:
                holder = inner
                continue
            action = chance.random()
            if action < 0.7:
                holder[key] = copy.deepcopy(chance.choice(JUNK))
            elif action < 0.85:
                del holder[key]
            elif isinstance(holder, dict):
                holder[key[:-1] + chance.choice(["", "x", "s"])] = holder.pop(key)
            break
    return changed


INSERTED = [
    "é", "\x00", "\x1b[31m", "\u202e", " - ", "\n", "\t", ": ", "{", "[", '"', "'", "&a ", "*a", "!!python/object:x ", "|", ">",
    "%", "---\n", "#", "\ufeff", "1e999", "0x", "9" * 5000, "a.b", "<<: ", "? ", "null", "}", "]", ",", "\r",
]  # fmt: skip
WORDS = [
    "model", "path", "data", "train", "evaluation", ".", ".0", "=", "[", "]", "{", "}", ":", " ", "1e-4", "x", "'", "&", "*",
    "9" * 30, "é", "\x1b", "²", "٣", "-1", "/", "null", "a" * 300, ".a" * 60,
]  # fmt: skip


def damaged_bytes(content: bytes, chance: random.Random) -> bytes:
    """The bytes with one to four stretches removed, inserted, changed or doubled."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        action, at = chance.random(), chance.randrange(len(changed) + 1)
        if action < 0.3:
            del changed[at : at + chance.randint(1, 8)]
        elif action < 0.7:
            changed[at:at] = chance.choice(INSERTED).encode()
        elif action < 0.85:
            changed[at:at] = bytes([chance.randrange(256)])
        else:
            changed[at:at] = changed[max(0, at - 40) : at]
    return bytes(changed)


def override_words(chance: random.Random) -> list[str]:
    """Overrides of the command line, mostly nonsense."""
    words = ["".join(chance.choices(WORDS, k=chance.randint(1, 9))) for _ in range(chance.randint(1, 3))]
    return [word for word in words if "=" in word and not word.startswith("-")]
