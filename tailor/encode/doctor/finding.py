"""Findings of the doctor, and the texts of rows in them, which are safe to print."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tailor.encode.counted_rows import CountedRows
from tailor.printable import printable

Severity = Literal["error", "warning", "info"]
"""error: training on these rows is wrong. warning: likely a fault of the data. info: worth a look."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")

NAMED = 20
"""Rows that a finding names."""
EXCERPT = 100
"""Characters of a row's text in a finding."""


@dataclass
class Found(CountedRows):
    """Rows that a check found."""

    limit: ClassVar[int] = NAMED

    def merge(self, later: Found, offset: int) -> None:
        """Add the rows of a later task, whose row numbers count from `offset`."""
        self.count += later.count
        room = NAMED - len(self.first)
        self.first += [(label, number + offset, detail) for label, number, detail in later.first[:room]]


@dataclass(frozen=True)
class Finding:
    """One result of a check. message: what the rows are, without their number, `count`.

    rows: the first rows as (`file:row`, detail). fix: lines of the recipe, or empty.
    """

    check: str
    severity: Severity
    message: str
    count: int
    rows: tuple[tuple[str, str], ...] = ()
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "severity": self.severity,
            "message": self.message,
            "count": self.count,
            "rows": [{"row": name, "detail": detail} for name, detail in self.rows],
            "fix": self.fix,
        }


def finding_of(
    check: str, severity: Severity, message: str, found: Found | None, fix: str = ""
) -> list[Finding]:
    """The finding about rows, or none when there are no rows."""
    if found is None or not found.count:
        return []
    rows = tuple((printable(f"{label}:{number}"), printable(detail)) for label, number, detail in found.first)
    return [Finding(check, severity, message, found.count, rows, fix)]


def decontaminate(paths: Iterable[str]) -> str:
    """The recipe lines that leave out training rows with texts of these files."""
    # A JSON string is a YAML string too.
    return "data:\n  decontaminate: [" + ", ".join(f"{{path: {json.dumps(path)}}}" for path in paths) + "]"


def excerpt(text: str, around: int = 0) -> str:
    """A part of a text of a row, made printable. around: the index of the character that it must show."""
    start = max(0, around - EXCERPT // 2) if len(text) > EXCERPT else 0
    piece = text[start : start + EXCERPT]
    head, tail = "…" * (start > 0), "…" * (start + EXCERPT < len(text))
    return f"{head}{printable(piece)}{tail}"


def summary(findings: Mapping[str, int]) -> str:
    """`1 error, 3 warnings, 2 notes`."""
    names = {"error": "error", "warning": "warning", "info": "note"}
    return ", ".join(
        f"{findings.get(level, 0):,} {name}{'s' * (findings.get(level, 0) != 1)}"
        for level, name in names.items()
    )
