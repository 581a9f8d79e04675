"""Rankings and their figures: equal to pytrec_eval, which is trec_eval itself, with ties and graded relevance."""

from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval

from tailor.evaluate.retrieval import ranking
from tailor.evaluate.retrieval.metrics import relevance
from tailor.evaluate.retrieval.ranking import TopK, tie_ranks

THEIRS = {
    "recall@1": "recall_1",
    "recall@5": "recall_5",
    "recall@10": "recall_10",
    "recall@100": "recall_100",
    "ndcg@10": "ndcg_cut_10",
    "mrr@10": "recip_rank",  # only of the ten best
    "map@100": "map_cut_100",
}
MEASURES = {"recall.1,5,10,100", "ndcg_cut.10", "map_cut.100"}
IDS = [*(f"d{at}" for at in range(398)), "Zürich", "東京"]


def judged(seed: int, queries: int) -> tuple[np.ndarray, np.ndarray, dict[str, dict[str, int]]]:
    """Vectors of small integers, so that many scores tie, and grades from -1 to 3. One query has no grade above 0."""
    generator = np.random.default_rng(seed)
    asked, passages = (
        generator.integers(-2, 3, (count, 6)).astype(np.float32) for count in (queries, len(IDS))
    )
    grades = {}
    for query in range(queries):
        chosen = generator.choice(len(IDS), generator.integers(1, 30), replace=False)
        grades[f"q{query}"] = {
            IDS[at]: int(grade)
            for at, grade in zip(chosen, generator.integers(-1, 4, len(chosen)), strict=True)
        }
    grades["q0"] = dict.fromkeys(grades["q0"], 0)
    return asked, passages, grades


def ours(
    asked: np.ndarray, passages: np.ndarray, grades: dict[str, dict[str, int]]
) -> list[dict[str, float]]:
    at = tie_ranks(IDS)
    best = TopK(asked, 100)
    best.add(at, passages)
    by_place = dict(zip(IDS, at.tolist(), strict=True))
    return [
        relevance(ranked.tolist(), {by_place[name]: grade for name, grade in grades[f"q{query}"].items()})
        for query, (ranked, _) in enumerate(best.ranked())
    ]


def theirs(
    asked: np.ndarray, passages: np.ndarray, grades: dict[str, dict[str, int]]
) -> list[dict[str, float]]:
    scores = asked @ passages.T
    run = {f"q{at}": dict(zip(IDS, row.tolist(), strict=True)) for at, row in enumerate(scores)}
    found = pytrec_eval.RelevanceEvaluator(grades, MEASURES).evaluate(run)
    ten = {
        query: dict(sorted(row.items(), key=lambda item: (item[1], item[0]), reverse=True)[:10])
        for query, row in run.items()
    }
    first = pytrec_eval.RelevanceEvaluator(grades, {"recip_rank"}).evaluate(ten)
    return [
        {mine: (found if mine != "mrr@10" else first)[f"q{at}"][name] for mine, name in THEIRS.items()}
        for at in range(len(asked))
    ]


@pytest.mark.parametrize("seed", range(5))
def test_figures_match_trec_eval(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "TILE", 37)
    monkeypatch.setattr(ranking, "_QUERIES", 7)
    made = judged(seed, 40)
    mine, wanted = ours(*made), theirs(*made)
    for own, other in zip(mine, wanted, strict=True):
        assert own == pytest.approx(other, abs=1e-12, rel=0)
    values = np.array([list(own.values()) for own in mine])
    assert (values[0] == 0).all(), "no passage of the first query is relevant"
    assert ((values > 0) & (values < 1)).any(0)[1:].all(), "the control: no figure is trivial"


def test_ties_matter() -> None:
    """Control: the opposite order of ties changes the figures."""
    asked, passages, grades = judged(0, 40)
    at = len(IDS) - 1 - tie_ranks(IDS)
    best = TopK(asked, 100)
    best.add(at, passages)
    by_place = dict(zip(IDS, at.tolist(), strict=True))
    other = [
        relevance(ranked.tolist(), {by_place[name]: grade for name, grade in grades[f"q{query}"].items()})
        for query, (ranked, _) in enumerate(best.ranked())
    ]
    assert (
        sum(mine != wanted for mine, wanted in zip(other, theirs(asked, passages, grades), strict=True)) > 20
    )


def test_gain_is_linear() -> None:
    """By hand: the passages of grades 1 and 3 in the wrong order."""
    found = relevance([7, 5, 6], {5: 1, 6: 3})
    discounts = 1 / np.log2([2, 3, 4])
    assert found["ndcg@10"] == pytest.approx(
        (1 * discounts[1] + 3 * discounts[2]) / (3 + discounts[1]), abs=1e-12
    )
    exponential = (1 * discounts[1] + 7 * discounts[2]) / (7 + discounts[1])
    assert abs(found["ndcg@10"] - exponential) > 0.04, "the control: not 2^grade - 1"
    assert found["mrr@10"] == 0.5
    assert found["map@100"] == pytest.approx((1 / 2 + 2 / 3) / 2, abs=1e-12)


def test_top_k_matches_the_full_score_matrix() -> None:
    """In any order and tile size, with negative scores; excluded passages and those above a ceiling are not ranked."""
    generator = np.random.default_rng(1)
    asked, passages = (generator.integers(-3, 4, (n, 5)).astype(np.float32) for n in (300, 1000))
    at = generator.permutation(1000)
    excluded = np.stack([generator.integers(0, 300, 900), generator.integers(0, 1000, 900)], 1)
    ceilings = np.where(np.arange(300) % 2, generator.integers(5, 20, 300), np.inf).astype(np.float32)
    best = TopK(asked, 12, excluded, ceilings)
    for part in np.array_split(generator.permutation(1000), 9):
        best.add(at[part], passages[part])
    scores = np.empty((300, 1000), np.float32)
    scores[:, at] = asked @ passages.T
    for query, (ranked, found) in enumerate(best.ranked()):
        order = np.lexsort((np.arange(1000), -scores[query]))
        order = order[~np.isin(order, excluded[excluded[:, 0] == query, 1])]
        order = order[scores[query, order] < ceilings[query]][:12]
        assert ranked.tolist() == order.tolist()
        assert found.tolist() == scores[query, order].tolist()
    few = TopK(asked, 12)
    few.add(np.arange(3), passages[:3])
    assert [len(ranked) for ranked, _ in few.ranked()] == [3] * 300
