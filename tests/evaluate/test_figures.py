"""Figures and their intervals: by hand, against plain resampling, and their coverage of the true mean."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tailor.evaluate.figures import broken_bounds, from_losses, interval, mean, table
from tailor.spec.suite import Intervals

SETTINGS = Intervals()


def test_losses_are_weighted_by_token() -> None:
    figures = from_losses([2.0, 30.0], [1, 5], [2, 10])
    assert figures["loss"].value == pytest.approx(32 / 12)
    assert figures["perplexity"].value == pytest.approx(math.exp(32 / 12))
    assert figures["token_accuracy"].value == 0.5
    assert figures["loss"].value != pytest.approx((1 + 3) / 2), "the control: not the mean of the rows"


def test_the_interval_matches_plain_resampling() -> None:
    values = np.random.default_rng(5).normal(size=60)
    generator = np.random.default_rng(SETTINGS.seed)
    plain = [values[generator.integers(0, 60, 60)].mean() for _ in range(SETTINGS.samples)]
    assert interval(mean(values).drawn(SETTINGS), 0.95) == pytest.approx(
        (np.percentile(plain, 2.5), np.percentile(plain, 97.5))
    )
    assert interval(mean(values).drawn(Intervals(seed=1)), 0.95) != interval(
        mean(values).drawn(SETTINGS), 0.95
    )


def test_most_intervals_contain_the_true_mean() -> None:
    """About 95 of 100 intervals (95 %, 40 rows) contain the mean of the distribution."""
    generator, settings = np.random.default_rng(0), Intervals(samples=300)
    held = 0
    for _ in range(200):
        low, high = interval(mean(generator.normal(size=40)).drawn(settings), 0.95)
        held += low <= 0 <= high
    assert 175 <= held <= 198


def test_differences_are_of_paired_rows() -> None:
    """Two models that differ by the same small step on very different rows: only paired rows show the difference."""
    base = np.random.default_rng(1).uniform(0, 1, 100)
    (entry,) = table({"a": {"f1": mean(base + 0.01)}, "b": {"f1": mean(base)}}, SETTINGS)
    assert entry["differences"]["b"]["value"] == pytest.approx(0.01)
    assert entry["differences"]["b"]["interval"] == pytest.approx((0.01, 0.01))
    low, high = entry["models"]["a"]["interval"]
    assert high - low > 0.05, "the control: each alone is far from sure"


def test_bounds() -> None:
    entries = table({"a": {"rougeL": mean([0.2, 0.4]), **from_losses([4.0], [1], [2])}}, SETTINGS)
    assert list(broken_bounds({"rougeL": "< 0.31", "perplexity": "> 5"}, entries)) == [
        "rougeL is 0.3, and fail_if says < 0.31",
        "perplexity is 7.389, and fail_if says > 5",
    ]
    assert not list(broken_bounds({"rougeL": "< 0.3", "loss": ">= 2.1"}, entries))
