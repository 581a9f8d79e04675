"""Rows that preparation leaves out: unreadable, without supervised tokens, too long, with two BOS tokens, …"""

from __future__ import annotations

from collections.abc import Iterator

from tailor.encode.doctor.checks.base import Check
from tailor.encode.doctor.finding import Finding, Found, Severity, excerpt, finding_of
from tailor.encode.doctor.rows import Examined, Row, Tally
from tailor.encode.report import DROPPED, SHORT

_PREFIX = "left_out/"
_KNOWN: dict[str, tuple[str, Severity, str, str]] = {
    "empty_answer": ("empty_answers", "warning", "rows with an empty answer, which are left out", ""),
    "nothing_supervised": (
        "unsupervised",
        "warning",
        "rows without a supervised token, which are left out",
        "method:\n  train_on: assistant",
    ),
    "double_bos": (
        "double_bos",
        "error",
        "rows that begin with two BOS tokens, one in their text and one from the tokenizer; remove it from the text",
        "",
    ),
    "template": ("template", "error", "rows that the chat template rejects", "data:\n  template: chatml"),
    "reasoning_dropped": (
        "reasoning",
        "error",
        "rows whose reasoning the chat template drops",
        "data:\n  reasoning: drop",
    ),
    "control_text": (
        "control_text",
        "warning",
        "rows with a token of the chat template in their text, which are left out",
        "",
    ),
    SHORT: (SHORT, "info", "rows shorter than data.min_length, which are left out", ""),
    "same_answers": ("same_answers", "warning", "pairs of two equal answers, which are left out", ""),
}


class LeftOut(Check):
    """Sees rows without a record too."""

    def lost(self, row: Row, tally: Tally) -> None:
        """Count a row that is left out."""
        assert row.error is not None
        tally.add(_PREFIX + row.error.reason, row, excerpt(row.error.detail))

    def row(self, row: Row, tally: Tally) -> None:
        if row.error is not None:
            self.lost(row, tally)

    def findings(self, examined: Examined) -> Iterator[Finding]:
        unreadable = Found()
        for kind, found in sorted(examined.found.items()):
            if not kind.startswith(_PREFIX):
                continue
            reason = kind.removeprefix(_PREFIX)
            if reason in _KNOWN:
                yield from finding_of(*_KNOWN[reason][:3], found, _KNOWN[reason][3])
            elif reason == "too_long":
                yield from _too_long(examined, found)
            elif reason not in DROPPED:
                unreadable.merge(
                    Found(found.count, [(a, b, f"{reason}: {detail}") for a, b, detail in found.first]), 0
                )
        allowed = examined.data.budget.unreadable * examined.rows
        share = min(1.0, -(-1000 * unreadable.count // max(examined.rows, 1)) / 1000)
        yield from finding_of(
            "unreadable",
            "error" if unreadable.count > allowed else "info",
            "rows that cannot be read",
            unreadable,
            f"data:\n  budget: {{unreadable: {share:g}}}",
        )


def _too_long(examined: Examined, found: Found) -> list[Finding]:
    data = examined.data
    if data.on_long == "drop":
        message = f"rows longer than data.max_length {data.max_length}, which are left out"
        return finding_of("too_long", "warning", message, found, "data:\n  on_long: truncate")
    message = f"rows longer than data.max_length {data.max_length} (data.on_long: {data.on_long})"
    return finding_of("too_long", "info", message, found)
