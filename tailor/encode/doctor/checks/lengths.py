"""Rows that are far longer or shorter than the other rows of their source."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tailor.encode.doctor.checks.base import Check
from tailor.encode.doctor.finding import Finding, finding_of
from tailor.encode.doctor.rows import Examined, Row, Tally

_MIN_ROWS = 50
_RANGES = 3.0
"""An outlier is this many interquartile ranges beyond the quartiles of the logarithm of the length (Tukey's far out)."""
_FACTOR = 4.0
"""And at least this many times longer or shorter than the median."""


class Lengths(Check):
    """Outliers in the number of tokens."""

    def row(self, row: Row, tally: Tally) -> None:
        tally.put("tokens", sum(len(example.input_ids) for example in row.examples or ()))

    def findings(self, examined: Examined) -> Iterator[Finding]:
        tokens = examined.columns["tokens"]
        for name, rows in examined.by_source(tokens > 0):
            if len(rows) < _MIN_ROWS:
                continue
            lengths = np.log(tokens[rows])
            low, middle, high = np.percentile(lengths, (25, 50, 75))
            far = _RANGES * max(high - low, 0.1)
            factor = np.log(_FACTOR)
            for what, mask in (
                ("longer", (lengths > high + far) & (lengths >= middle + factor)),
                ("shorter", (lengths < low - far) & (lengths <= middle - factor)),
            ):
                outliers = rows[mask]
                details = [f"{int(tokens[row]):,} tokens" for row in outliers[:20]]
                message = f"rows of {name} that are far {what} than its median of {np.exp(middle):.0f} tokens"
                yield from finding_of("length_outliers", "info", message, examined.named(outliers, details))
