"""Figures over rows, their confidence intervals, and the bounds that they must keep.

The interval of a figure is the percentile interval of a bootstrap (Efron 1979): rows are drawn anew with
replacement, and the figure is taken over each draw. All models see the same draws, so that the interval of a
difference is that of paired rows (Koehn 2004). When every row scores the same there is nothing to draw from,
and the interval has no width; it then says nothing of rows that were not seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tailor.errors import DataError
from tailor.spec.rules.suite import BOUND
from tailor.spec.suite import Intervals

_CHUNK = 1 << 22
"""Drawn row numbers held at once."""


@dataclass(frozen=True)
class PerRow:
    """What a figure is made of: the sum of `over` divided by the sum of `under`, then `exp` of it for a perplexity.

    over, under: float64[rows].
    """

    over: np.ndarray
    under: np.ndarray
    exponential: bool = False
    lower_is_better: bool = False

    def figure(self, over: Any, under: Any) -> Any:
        ratio = over / under
        return np.exp(np.minimum(ratio, 700.0)) if self.exponential else ratio

    @property
    def value(self) -> float:
        return float(self.figure(self.over.sum(), self.under.sum()))

    def drawn(self, settings: Intervals) -> np.ndarray:
        """The figure over each draw, float64[samples]. The draws depend on the number of rows and the seed alone."""
        generator = np.random.default_rng(settings.seed)
        rows = len(self.over)
        step = max(1, _CHUNK // rows)
        parts = []
        for start in range(0, settings.samples, step):
            chosen = generator.integers(0, rows, (min(step, settings.samples - start), rows))
            parts.append(self.figure(self.over[chosen].sum(1), self.under[chosen].sum(1)))
        return np.concatenate(parts)


def mean(values: Any) -> PerRow:
    """A figure that is the mean over rows."""
    over = np.asarray(values, dtype=np.float64)
    return PerRow(over, np.ones_like(over))


def from_losses(loss: Any, hits: Any, tokens: Any) -> dict[str, PerRow]:
    """The figures of rows' summed losses and hits, weighted by token. All float64[rows]."""
    loss, hits, tokens = (np.asarray(values, dtype=np.float64) for values in (loss, hits, tokens))
    return {
        "loss": PerRow(loss, tokens, lower_is_better=True),
        "perplexity": PerRow(loss, tokens, exponential=True, lower_is_better=True),
        "token_accuracy": PerRow(hits, tokens),
    }


def interval(drawn: np.ndarray, confidence: float) -> tuple[float, float]:
    """The percentiles that leave out the same share at both ends."""
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def table(models: Mapping[str, Mapping[str, PerRow]], settings: Intervals) -> list[dict[str, Any]]:
    """One entry per figure, in the order of the first model: its value and interval for each model, and the
    difference of the first model to each other one.
    """
    first, *others = models
    entries = []
    for name, own in models[first].items():
        drawn = {model: figures[name].drawn(settings) for model, figures in models.items()}
        entry: dict[str, Any] = {
            "figure": name,
            "rows": len(own.over),
            "better": "lower" if own.lower_is_better else "higher",
            "models": {
                model: {
                    "value": figures[name].value,
                    "interval": interval(drawn[model], settings.confidence),
                }
                for model, figures in models.items()
            },
            "differences": {
                other: {
                    "value": own.value - models[other][name].value,
                    "interval": interval(drawn[first] - drawn[other], settings.confidence),
                }
                for other in others
            },
        }
        entries.append(entry)
    return entries


def broken_bounds(fail_if: Mapping[str, str], entries: list[dict[str, Any]]) -> Iterator[str]:
    """The bounds of `fail_if` that hold for the first model, in words that name the figure. DataError for another figure."""
    values = {entry["figure"]: next(iter(entry["models"].values()))["value"] for entry in entries}
    if unknown := [figure for figure in fail_if if figure not in values]:
        raise DataError(
            f"fail_if names {unknown[0]}, and the tasks gave {', '.join(values)}",
            hint="correct it, and give the same command again, which takes the answers that are done",
        )
    for figure, bound in fail_if.items():
        match = BOUND.fullmatch(bound)
        assert match is not None
        sign, limit = match[1], float(match[2])
        value = values[figure]
        holds = {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}[sign]
        if holds or not math.isfinite(value):
            yield f"{figure} is {value:.4g}, and fail_if says {sign} {match[2]}"
