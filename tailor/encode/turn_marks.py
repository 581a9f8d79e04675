"""Marks of a turn that say whether it is learned: `weight`, `loss_weight`, `train`, `loss`, `mask` and `masked`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailor.encode.records import RowError

MARKS = {"weight": True, "loss_weight": True, "train": True, "loss": True, "mask": False, "masked": False}
"""Mark -> whether a true value means that the turn is learned."""

PART_MARKS = ("train_detail", "training_detail")
"""Marks of parts of a turn (Axolotl)."""

_ALL = {**MARKS, **dict.fromkeys(PART_MARKS)}


def is_learned(turn: Mapping[str, Any]) -> bool:
    """Whether a turn's marks allow it to be learned.

    RowError for a value other than true, false, 1 and 0, for marks that contradict each other, and for marks of
    parts of a turn.
    """
    if _ALL.keys().isdisjoint(turn):
        return True
    marks = {key: turn[key] for key in _ALL if turn.get(key) is not None}
    found = {}
    for key, value in marks.items():
        if key in PART_MARKS:
            raise RowError("turn_mark", f"`{key}` of a message marks parts of a turn, which is not supported")
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise RowError(
                "turn_mark",
                f"`{key}` of a message must be 0 or 1, not {value!r}: a turn is learned as a whole or not at all",
            )
        found[key] = bool(value) == MARKS[key]
    if len(set(found.values())) > 1:
        shown = ", ".join(f"{key}: {marks[key]!r}" for key in found)
        raise RowError("turn_mark", f"the marks of a message contradict each other ({shown})")
    return all(found.values())


def mark(message: dict[str, Any], turn: Mapping[str, Any]) -> dict[str, Any]:
    """The message with `weight: 0` if it is an assistant's and the turn's marks exclude it, and without other marks.

    Marks of other turns than the assistant's are checked, and have no effect.
    """
    if _ALL.keys().isdisjoint(turn):
        return message
    learned = is_learned(turn)
    message = {key: value for key, value in message.items() if key not in _ALL}
    return message if learned or message["role"] != "assistant" else {**message, "weight": 0}
