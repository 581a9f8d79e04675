"""Select the metrics of a record that trackers draw as curves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

KINDS = ("train", "evaluation", "generation", "retrieval")
NOT_FIGURES = ("kind", "step", "time", "count", "queries", "passages")


def curves(record: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(kind, key, value) of the numbers to draw. A value may be infinite, for example after a gradient overflow in fp16."""
    kind = record["kind"]
    for key, value in record.items() if kind in KINDS else ():
        if key not in NOT_FIGURES and isinstance(value, int | float):
            yield kind, key, value


def with_letters(name: str) -> str:
    """A metric's name for trackers that have no `@` in names, such as `retrieval/recall_at_1`."""
    return name.replace("@", "_at_")
