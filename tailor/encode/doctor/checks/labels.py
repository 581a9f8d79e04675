"""Labels of rated answers (KTO): their balance, and answers that have both."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tailor.encode.doctor.checks.base import Check
from tailor.encode.doctor.finding import Finding, finding_of
from tailor.encode.doctor.rows import Examined, Row, Tally
from tailor.encode.records import Rated, row_hash

_UNDESIRABLE, _DESIRABLE, _OTHER = 0, 1, 2
_TRAIN = 0
_UNBALANCED = 4.0


class Labels(Check):
    """Rated answers only."""

    def row(self, row: Row, tally: Tally) -> None:
        record = row.record
        tally.put("label", int(record.desirable) if isinstance(record, Rated) else _OTHER)
        tally.put("rated", row_hash(record.answer) if isinstance(record, Rated) else 0)

    def findings(self, examined: Examined) -> Iterator[Finding]:
        labels, train = examined.columns["label"], examined.columns["split"] == _TRAIN
        good, bad = (int((train & (labels == label)).sum()) for label in (_DESIRABLE, _UNDESIRABLE))
        weights = examined.method.label_weights
        if weights is not None and good + bad:
            yield from _balance(weights, good, bad)
        rated = np.flatnonzero(labels != _OTHER)
        both = _with_both(examined.columns["rated"][rated], labels[rated])
        yield from finding_of(
            "contradictory_labels",
            "warning",
            "rows with an answer that is desirable in one row and undesirable in another",
            examined.named(rated[both]),
        )


def _balance(weights: tuple[float, float], good: int, bad: int) -> Iterator[Finding]:
    if not good or not bad:
        only = "desirable" if good else "undesirable"
        message = (
            f"all {good + bad:,} training answers are {only}; the method learns from answers of both kinds"
        )
        yield Finding("label_balance", "error", message, good + bad)
        return
    weighted = weights[0] * good, weights[1] * bad
    ratio = max(weighted) / max(min(weighted), 1e-9)
    if ratio < _UNBALANCED:
        return
    key, weight = ("desirable_weight", bad / good) if good < bad else ("undesirable_weight", good / bad)
    message = f"{good:,} training answers are desirable and {bad:,} undesirable; weights should balance them"
    yield Finding(
        "label_balance",
        "warning",
        message,
        min(good, bad),
        fix=f"method:\n  {key}: {float(f'{weight:.2g}'):g}",
    )


def _with_both(hashes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """bool [N]: rows whose answer has both labels."""
    good, bad = (np.unique(hashes[labels == label]) for label in (_DESIRABLE, _UNDESIRABLE))
    found: np.ndarray = np.isin(hashes, np.intersect1d(good, bad))
    return found
