"""Figures and their intervals: by hand, against plain resampling, and their coverage of the true mean."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tailor.evaluate.figures import PerRow, from_losses, interval, mean, p_value, table
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


def exact_p(one: PerRow, other: PerRow) -> float:
    """The share of all exchanges of rows between two models with a difference of at least the measured one."""
    measured, extreme, total = abs(one.value - other.value), 0, 0
    for exchanged in itertools.product((False, True), repeat=len(one)):
        swap = np.array(exchanged)[:, None]
        first = np.where(swap, other.statistics, one.statistics).sum(0)
        second = np.where(swap, one.statistics, other.statistics).sum(0)
        extreme += abs(float(one.function(first) - one.function(second))) >= measured - 1e-12
        total += 1
    return extreme / total


@pytest.mark.parametrize("weighted", [False, True], ids=["mean", "perplexity"])
def test_p_values_are_those_of_all_exchanges(weighted: bool) -> None:
    generator = np.random.default_rng(4)
    left, right = generator.uniform(1, 3, 10), generator.uniform(1.3, 3.3, 10)
    tokens = generator.integers(1, 20, 10)
    pair = [
        from_losses(values * tokens, tokens, tokens)["perplexity"] if weighted else mean(values)
        for values in (left, right)
    ]
    expected = exact_p(*pair)
    found = p_value(*pair, Intervals(samples=20000))  # type: ignore[arg-type]
    assert found == pytest.approx(expected, abs=0.012)
    assert 0.05 < expected < 0.9, "the control: neither sure nor impossible"


def test_p_values_of_equal_and_of_different_models() -> None:
    base = np.random.default_rng(1).uniform(0, 1, 100)
    assert p_value(mean(base), mean(base), SETTINGS) == 1
    assert p_value(mean(base + 0.01), mean(base), SETTINGS) == pytest.approx(1 / 1001)
    assert p_value(mean([1.0, 0.0]), mean([0.0, 1.0]), SETTINGS) == 1, "the rows cancel"
    assert p_value(mean([1.0], [0.0]), mean([1.0]), SETTINGS) is None, "a figure without rows has no value"


def test_p_values_of_equal_models_are_uniform() -> None:
    """Of 300 pairs of equally good models, about a tenth has p <= 0.1."""
    generator, settings = np.random.default_rng(0), Intervals(samples=200)
    values = [
        p_value(mean(generator.normal(size=30)), mean(generator.normal(size=30)), settings)
        for _ in range(300)
    ]
    assert 15 <= sum(value <= 0.1 for value in values if value is not None) <= 45


def test_rows_without_weight_are_left_out() -> None:
    figure = mean([1.0, math.nan, 0.0, 1.0], [1, 0, 1, 1])
    assert figure.value == pytest.approx(2 / 3)
    low, high = interval(figure.drawn(SETTINGS), 0.95)
    assert 0 <= low < 2 / 3 < high <= 1
