"""Rows with one property: their number, and the first of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

NAMED = 5
"""Rows that a report names for each property."""


@dataclass
class CountedRows:
    """Rows with one property: how many, and the first `limit` of them as (file label, row number, detail)."""

    limit: ClassVar[int] = NAMED

    count: int = 0
    first: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, label: str, row: int, detail: str) -> None:
        self.count += 1
        if len(self.first) < self.limit:
            self.first.append((label, row, detail))
