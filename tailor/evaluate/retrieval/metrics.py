"""Recall, NDCG, MRR and MAP of a ranking, as trec_eval defines them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

RECALL = (1, 5, 10, 100)
DEPTH = 100
"""Ranking depth: only this many passages of a ranking are evaluated."""


def relevance(ranked: Sequence[int], grades: Mapping[int, int]) -> dict[str, float]:
    """The metrics of one query. ranked: passages, best first; grades: judged passage -> grade.

    A passage with a grade of 1 or more is relevant; its gain is the grade (linear gain). A passage without a grade is not
    relevant. All metrics of a query without a relevant passage are 0, as in trec_eval.
    """
    ranked = ranked[:DEPTH]
    gains = np.array([max(0, grades.get(passage, 0)) for passage in ranked], np.float64)
    hits = gains > 0
    ideal = np.sort([grade for grade in grades.values() if grade > 0])[::-1].astype(np.float64)
    relevant = len(ideal)
    found = {f"recall@{k}": hits[:k].sum() / relevant if relevant else 0.0 for k in RECALL}
    best = _discounted(ideal[:10])
    found["ndcg@10"] = _discounted(gains[:10]) / best if relevant else 0.0
    first = np.flatnonzero(hits[:10])
    found["mrr@10"] = 1 / (1 + first[0]) if len(first) else 0.0
    precision = np.cumsum(hits) / (1 + np.arange(len(hits)))
    found["map@100"] = precision[hits].sum() / relevant if relevant else 0.0
    return {name: float(value) for name, value in found.items()}


def _discounted(gains: np.ndarray) -> float:
    """Discounted cumulative gain (Järvelin & Kekäläinen 2002) with the discount log2(1 + rank)."""
    return float((gains / np.log2(2 + np.arange(len(gains)))).sum())
