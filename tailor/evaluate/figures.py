"""Figures over rows, and their confidence intervals.

The confidence interval of a figure is the percentile interval of a bootstrap (Efron 1979): rows are sampled with
replacement, and the figure is computed over each sample. All models use the same samples, so the interval of a
difference is that of a paired bootstrap (Koehn 2004). When all rows have the same score, the interval has zero width
and says nothing about unseen rows.

The p-value of a difference is that of a paired approximate randomization test (Noreen 1989; for corpus-level figures
Riezler & Maxwell 2005): if two models were equally good, the results of a row could be exchanged between them. It is
the share of random exchanges whose difference is at least as large as the measured one, in either direction. P-values
of several figures are not corrected for their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np

from tailor.spec.suite import Intervals

_CHUNK = 1 << 22
"""Sampled row numbers in memory at once: 4 Mi of int64 are 32 MiB."""


@dataclass(frozen=True)
class PerRow:
    """A figure as a function of sums over rows.

    statistics: float64[rows, K], the sufficient statistics of each row, such as counts. function: their sums over rows,
    float64[..., K] -> the figure, float64[...]. is_share: whether it is a share from 0 to 1, which is shown in percent.
    """

    statistics: np.ndarray
    function: Callable[[np.ndarray], np.ndarray]
    lower_is_better: bool = False
    is_share: bool = True

    def __len__(self) -> int:
        return len(self.statistics)

    @property
    def value(self) -> float:
        return float(self.function(self.statistics.sum(0)))

    def of(self, rows: Sequence[int]) -> PerRow:
        """The same figure over some of the rows."""
        return replace(self, statistics=self.statistics[list(rows)])

    def drawn(self, settings: Intervals) -> np.ndarray:
        """The figure over each bootstrap sample: float64[samples]. The samples depend only on the number of rows and the seed."""
        generator = np.random.default_rng(settings.seed)
        rows = len(self)
        step = max(1, _CHUNK // rows)
        columns = self.statistics.T.copy()  # [K, rows]
        parts = []
        for start in range(0, settings.samples, step):
            chosen = generator.integers(0, rows, (min(step, settings.samples - start), rows))
            parts.append(self.function(np.stack([column[chosen].sum(1) for column in columns], -1)))
        return np.concatenate(parts)


def ratio(over: Any, under: Any, *, lower_is_better: bool = False, is_share: bool = True) -> PerRow:
    """sum(over) / sum(under). over, under: one number per row."""
    return PerRow(_columns(over, under), _divide, lower_is_better, is_share)


def exponential(over: Any, under: Any) -> PerRow:
    """exp(sum(over) / sum(under)), a perplexity. over, under: one number per row."""
    return PerRow(_columns(over, under), _exponential, lower_is_better=True, is_share=False)


def mean(values: Any, weights: Any = None, *, is_share: bool = True) -> PerRow:
    """The mean over rows. values: one number per row. weights: 0 for a row that is left out, else 1; None: all rows."""
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    return ratio(np.where(weights > 0, values, 0.0), weights, is_share=is_share)


def from_losses(loss: Any, hits: Any, tokens: Any) -> dict[str, PerRow]:
    """Loss, perplexity and token accuracy, weighted by token.

    loss, hits, tokens: float64[rows], sums over the scored tokens of each row.
    """
    return {
        "loss": ratio(loss, tokens, lower_is_better=True, is_share=False),
        "perplexity": exponential(loss, tokens),
        "token_accuracy": ratio(hits, tokens),
    }


def _columns(*columns: Any) -> np.ndarray:
    """float64[rows, K] from K columns."""
    return np.stack([np.asarray(column, dtype=np.float64) for column in columns], -1)


def _divide(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):  # a bootstrap sample may have no row with a weight
        found: np.ndarray = sums[..., 0] / sums[..., 1]
    return found


def _exponential(sums: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.exp(np.minimum(_divide(sums), 700.0))
    return found


def interval(drawn: np.ndarray, confidence: float) -> tuple[float, float]:
    """The central interval of the bootstrap samples: it leaves out the same share at both ends.

    Samples without a value, in which no row has a weight, are left out.
    """
    low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def wilson(share: float, count: int, confidence: float) -> tuple[float, float]:
    """The score interval of a share of `count` trials (Wilson 1927), for few trials or equal results.

    A bootstrap of five equal results has zero width; this one is [0.57, 1] for five of five at 95 %.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    center, half = share + z * z / (2 * count), z * sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)


def p_value(one: PerRow, other: PerRow, settings: Intervals) -> float | None:
    """The two-sided p-value of the difference of two models. one, other: the same figure over the same rows.

    At least 1 / (samples + 1), and 1 for equal figures. None when a figure has no value.
    """
    difference = one.value - other.value
    if not np.isfinite(difference):
        return None
    generator = np.random.default_rng([settings.seed, 1])
    change = other.statistics - one.statistics  # [rows, K]
    sums, other_sums = one.statistics.sum(0), other.statistics.sum(0)
    # Exchanges that give the same difference count, also if their sums are rounded in another order.
    least = abs(difference) * (1 - 1e-9) - 1e-12
    rows, extreme = len(one), 0
    step = max(1, _CHUNK // rows)
    for start in range(0, settings.samples, step):
        exchanged = generator.integers(0, 2, (min(step, settings.samples - start), rows), dtype=np.int8)
        moved = exchanged.astype(np.float64) @ change  # [samples, K]
        found = one.function(sums + moved) - one.function(other_sums - moved)
        extreme += int((np.abs(found) >= least).sum())
    return (extreme + 1) / (settings.samples + 1)


def table(models: Mapping[str, Mapping[str, PerRow]], settings: Intervals) -> list[dict[str, Any]]:
    """One entry per figure, in the order of the first model.

    An entry has the value and interval for each model, and the difference of the first model to each other model, with
    its interval and p-value. A figure that a model does not have is left out.
    """
    first, *others = models
    entries = []
    for name, own in models[first].items():
        if not all(name in figures for figures in models.values()):
            continue
        drawn = {model: figures[name].drawn(settings) for model, figures in models.items()}
        entry: dict[str, Any] = {
            "figure": name,
            "rows": len(own),
            "better": "lower" if own.lower_is_better else "higher",
            "unit": "share" if own.is_share else "number",
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
                    "p": p_value(own, models[other][name], settings),
                }
                for other in others
            },
        }
        entries.append(entry)
    return entries
