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
