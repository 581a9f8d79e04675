"""Prompts that hide a value: of exact length, with the value at an exact depth, built from token ids."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tailor.encode.tokenizer import Tokenizer
from tailor.errors import DataError
from tailor.spec.long import Needle, Passkey

Ids = list[int]
ANSWER_ROOM = 24
"""Tokens that an answer may have beside the value's own."""
_MARK = "\ue000"
"""Stands where the haystack goes, in a rendered turn; a private character that no template writes."""
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Hunt:
    """A prompt and the value that it hides. start: place of the hiding sentence's first token."""

    place: dict[str, Any]
    """`length`, `depth` and `sample`, from 1."""
    prompt: Ids
    value: str
    start: int
    max_new_tokens: int
    prefill: int | None


def hunts(
    task: Passkey | Needle, haystack: Sequence[str], tokenizer: Tokenizer, *, plain: bool
) -> list[Hunt]:
    """Every prompt of the grid. `plain`: without a chat template. DataError where a length has no room."""
    before, after = _around(task, tokenizer, plain)
    hay = [token for text in haystack for token in tokenizer.encode(text)]
    found = []
    for length in sorted(task.lengths):
        for depth in sorted(task.depths):
            for sample in range(1, task.samples + 1):
                # Seeded by its place alone, so that more lengths or samples change no other prompt.
                draw = random.Random(f"{task.seed}/{length}/{depth:g}/{sample}")
                value = str(draw.randrange(10 ** (task.digits - 1), 10**task.digits))
                needle = tokenizer.encode(task.needle.replace("{value}", value))
                room = length - len(before) - len(needle) - len(after)
                if room < 0:
                    raise DataError(
                        f"{task.name}: {length} tokens have no room for the sentence that hides the value and the "
                        f"question, which take {length - room}",
                        hint="give longer lengths, or a shorter needle and question",
                    )
                around = _stretch(hay, room, task, draw)
                at = round(depth * room)
                prompt = [*before, *around[:at], *needle, *around[at:], *after]
                assert len(prompt) == length
                most = len(tokenizer.encode(value)) + ANSWER_ROOM
                place = {"length": length, "depth": depth, "sample": sample}
                found.append(Hunt(place, prompt, value, len(before) + at, most, task.prefill))
    return found


def finds(answer: str, value: str) -> bool:
    """Whether the first number of an answer is the value."""
    number = _NUMBER.search(answer)
    return number is not None and number[0] == value


def _around(task: Passkey | Needle, tokenizer: Tokenizer, plain: bool) -> tuple[Ids, Ids]:
    """What stands before the haystack and after it."""
    if plain:
        return list(tokenizer.prefix), tokenizer.encode(task.question)
    turn = [{"role": "user", "content": _MARK + task.question}]
    head, found, tail = tokenizer.render(turn, None, add_generation_prompt=True).partition(_MARK)
    if not found:
        raise DataError(f"{task.name}: the chat template does not write what the user says")
    return tokenizer.encode(head), tokenizer.encode(tail)


def _stretch(hay: Ids, room: int, task: Passkey | Needle, draw: random.Random) -> Ids:
    """Tokens of the haystack: the filler over and over, or a stretch of the texts."""
    if isinstance(task, Passkey):
        return (hay * (room // max(1, len(hay)) + 1))[:room]
    if len(hay) < room:
        raise DataError(
            f"needle: the texts have {len(hay):,} tokens together, and {max(task.lengths):,} are asked for",
            hint="give more texts in data, or shorter lengths",
        )
    start = draw.randrange(len(hay) - room + 1)
    return hay[start : start + room]


def by_length(items: Sequence[Hunt], batch_size: int) -> Iterator[list[int]]:
    """Which prompts go through the model together: those of one length, so that nothing is padded."""
    batch: list[int] = []
    for at, item in enumerate(items):
        if batch and (len(batch) == batch_size or len(items[batch[0]].prompt) != len(item.prompt)):
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch
