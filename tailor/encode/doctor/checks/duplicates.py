"""Duplicate rows within the training rows, and evaluation rows that are training rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tailor.encode.doctor.checks.base import Check
from tailor.encode.doctor.finding import Finding, decontaminate, finding_of
from tailor.encode.doctor.rows import Examined, Row, Tally
from tailor.encode.records import content_hash, row_hash
from tailor.encode.similarity.signature_file import first_equal

_TRAIN = 0


class Duplicates(Check):
    """Exact duplicates by a hash of the content, near duplicates by MinHash."""

    def row(self, row: Row, tally: Tally) -> None:
        assert row.record is not None
        tally.put("hash", row_hash(row.record))
        tally.put("content", content_hash(row.record))

    def findings(self, examined: Examined) -> Iterator[Finding]:
        exact = first_equal(examined.columns["hash"])
        train = examined.columns["split"] == _TRAIN
        key = examined.data.deduplicate
        yield from _repeated(examined, exact, train, "exact", removed=key is not None)
        # As preparation counts them: answers to one prompt and passages of one query count as equal.
        same = first_equal(examined.columns["content"])
        yield from _leaked(examined, same, train, "leakage", "equal")
        near = examined.near
        if near is None:
            message = "near duplicates were not looked for: pip install 'tailor[doctor]'"
            yield Finding("near_duplicates", "info", message, 0)
            return
        yield from _repeated(examined, near, train, "near", removed=key == "near", known=exact)
        yield from _leaked(examined, near, train, "near_leakage", "nearly equal", known=same)


def _repeated(
    examined: Examined,
    first: np.ndarray,
    train: np.ndarray,
    how: str,
    *,
    removed: bool,
    known: np.ndarray | None = None,
) -> list[Finding]:
    """Training rows that repeat an earlier training row."""
    own = _first_within(first, train)
    repeats = train & (own != np.arange(len(first)))
    if known is not None:
        repeats &= _first_within(known, train) == np.arange(len(first))
    rows = np.flatnonzero(repeats)
    details = [f"repeats {_name(examined, own[row])}" for row in rows[:20]]
    check = "duplicates" if how == "exact" else "near_duplicates"
    adverb = "equal" if how == "exact" else "nearly equal"
    end = f", and data.deduplicate: {examined.data.deduplicate} leaves them out" if removed else ""
    return finding_of(
        check,
        "info" if removed else "warning",
        f"training rows that are {adverb} to an earlier one{end}",
        examined.named(rows, details),
        "" if removed else f"data:\n  deduplicate: {how}",
    )


def _leaked(
    examined: Examined,
    first: np.ndarray,
    train: np.ndarray,
    check: str,
    how: str,
    known: np.ndarray | None = None,
) -> list[Finding]:
    """Evaluation rows whose group has a training row."""
    trained = _first_within(first, train)
    leaked = ~train & (trained >= 0)
    if known is not None:
        leaked &= _first_within(known, train) < 0
    rows = np.flatnonzero(leaked)
    details = [f"is {how} to {_name(examined, trained[row])}" for row in rows[:20]]
    paths = [source.path for source in examined.data.evaluation]
    fix = decontaminate(paths) if paths else "data:\n  deduplicate: near"
    return finding_of(
        check,
        "error" if check == "leakage" else "warning",
        f"evaluation rows that are {how} to a training row",
        examined.named(rows, details),
        fix,
    )


def _first_within(first: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """int64 [N]: for each row the first row of its group in the mask; -1 if the group has none."""
    found = np.full(len(first), -1, np.int64)
    members = np.flatnonzero(mask)[::-1]  # the last assignment is the first row
    found[first[members]] = members
    return found[first]


def _name(examined: Examined, row: int) -> str:
    return "{}:{}".format(*examined.name(int(row)))
