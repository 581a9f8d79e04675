"""Figures over rows, their confidence intervals, and the bounds of `fail_if`.

The confidence interval of a figure is the percentile interval of a bootstrap (Efron 1979): rows are sampled with
replacement, and the figure is computed over each sample. All models use the same samples, so the interval of a
difference is that of a paired bootstrap (Koehn 2004). When all rows have the same score, the interval has zero width
and says nothing about unseen rows.
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
"""Sampled row numbers in memory at once: 4 Mi of int64 are 32 MiB."""


@dataclass(frozen=True)
class PerRow:
    """A figure as sums over rows: sum(`over`) / sum(`under`), and `exp` of that for a perplexity.

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
        """The figure over each bootstrap sample: float64[samples]. The samples depend only on the number of rows and the seed."""
        generator = np.random.default_rng(settings.seed)
        rows = len(self.over)
        step = max(1, _CHUNK // rows)
        parts = []
        for start in range(0, settings.samples, step):
            chosen = generator.integers(0, rows, (min(step, settings.samples - start), rows))
            parts.append(self.figure(self.over[chosen].sum(1), self.under[chosen].sum(1)))
        return np.concatenate(parts)


def mean(values: Any) -> PerRow:
    """A figure that is the mean over rows. values: one number per row."""
    over = np.asarray(values, dtype=np.float64)
    return PerRow(over, np.ones_like(over))


def from_losses(loss: Any, hits: Any, tokens: Any) -> dict[str, PerRow]:
    """Loss, perplexity and token accuracy, weighted by token.

    loss, hits, tokens: float64[rows], sums over the scored tokens of each row.
    """
    loss, hits, tokens = (np.asarray(values, dtype=np.float64) for values in (loss, hits, tokens))
    return {
        "loss": PerRow(loss, tokens, lower_is_better=True),
        "perplexity": PerRow(loss, tokens, exponential=True, lower_is_better=True),
        "token_accuracy": PerRow(hits, tokens),
    }


def interval(drawn: np.ndarray, confidence: float) -> tuple[float, float]:
    """The central interval of the bootstrap samples: it leaves out the same share at both ends."""
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def table(models: Mapping[str, Mapping[str, PerRow]], settings: Intervals) -> list[dict[str, Any]]:
    """One entry per figure, in the order of the first model.

    An entry has the value and interval for each model, and the difference of the first model to each other model.
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
    """A message for each bound of `fail_if` that the first model violates. DataError for an unknown figure.

    A figure that is not finite violates its bound.
    """
    values = {entry["figure"]: next(iter(entry["models"].values()))["value"] for entry in entries}
    if unknown := [figure for figure in fail_if if figure not in values]:
        raise DataError(
            f"fail_if: unknown figure {unknown[0]}; the tasks report {', '.join(values)}",
            hint="correct it, and run the same command again: finished batches are reused",
        )
    for figure, bound in fail_if.items():
        match = BOUND.fullmatch(bound)
        assert match is not None
        sign, limit = match[1], float(match[2])
        value = values[figure]
        holds = {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}[sign]
        if holds or not math.isfinite(value):
            yield f"{figure} is {value:.4g}, and fail_if says {sign} {match[2]}"
