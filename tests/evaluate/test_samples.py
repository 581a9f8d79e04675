"""Several samples per question: their batches, means and pass@k."""

from __future__ import annotations

import itertools
import random

import pytest

from tailor.evaluate.batches import SAMPLE, generating, sampled, scoring
from tailor.evaluate.rows import Scored
from tailor.evaluate.tasks.answers import means, pass_at
from tailor.spec.suite import pass_counts


@pytest.mark.parametrize(("samples", "right", "k"), [(5, 2, 2), (5, 2, 4), (6, 1, 3), (4, 0, 2), (4, 4, 4)])
def test_pass_at_k_is_the_share_of_all_subsets(samples: int, right: int, k: int) -> None:
    results = [1] * right + [0] * (samples - right)
    subsets = list(itertools.combinations(results, k))
    assert pass_at(k, samples, right) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_is_unbiased() -> None:
    """Its mean over draws is the probability that one of k answers is right; 1 - (1 - c/n)^k is too small."""
    draw, chance, n, k = random.Random(0), 0.2, 6, 4
    counts = [sum(draw.random() < chance for _ in range(n)) for _ in range(20000)]
    expected = 1 - (1 - chance) ** k
    assert sum(pass_at(k, n, one) for one in counts) / len(counts) == pytest.approx(expected, abs=0.01)
    naive = sum(1 - (1 - one / n) ** k for one in counts) / len(counts)
    assert abs(naive - expected) > 0.02, "the control"


def test_which_k_are_reported() -> None:
    assert [pass_counts(n) for n in (1, 2, 3, 4, 10)] == [(), (2,), (2, 3), (2, 4), (2, 4, 8, 10)]


def test_samples_of_a_batch_have_numbers_of_their_own() -> None:
    (batch,) = generating("m", "questions", [[1, 2], [1]], 4)
    assert [one.items for one in sampled(batch, 1)] == [batch.items] == [(1, 0)]
    assert [one.items for one in sampled(batch, 3)] == [
        (1, 0), (1 + SAMPLE, SAMPLE), (1 + 2 * SAMPLE, 2 * SAMPLE),
    ]  # fmt: skip
    (scored,) = scoring("m", "choices", [Scored([1, 2], [(1, 2)])], 4)
    assert list(sampled(scored, 3)) == [scored], "only generated answers are sampled"


def test_a_row_without_a_score_is_left_out() -> None:
    found = means([[{"x": 1.0}, {"x": None}], [{"x": None}, {}], [{"x": 0.0}, {"x": 1.0, "y": 2.0}]], ["x"])
    assert found.figures["x"].value == pytest.approx((1 + 0.5) / 2)
    assert found.figures["x/pass@2"].value == 1, "only the row with two scores"
    assert found.figures["y"].value == 2
    assert found.rows == [{"x": 1.0, "y": None}, {"x": None, "y": None}, {"x": 0.5, "y": 2.0}]
