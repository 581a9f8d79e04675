"""Searches a collection with the embeddings of its texts, which arrive batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tailor.evaluate.retrieval.collection import Collection
from tailor.evaluate.retrieval.metrics import DEPTH, relevance
from tailor.evaluate.retrieval.ranking import TopK, tie_ranks


@dataclass(frozen=True)
class SearchResult:
    """The ranking of one query. passages: indexes in the corpus, best first; scores: of them; figures: its metrics."""

    passages: list[int]
    scores: list[float]
    figures: dict[str, float]


class Search:
    """Ranks the passages of a collection for each query.

    All embeddings of queries are added first, then those of passages. Only the queries and one batch are in memory.
    ignore_identical_ids: a passage with the id of the query is never retrieved, as in BEIR's Quora and ArguAna.
    """

    def __init__(self, collection: Collection, *, ignore_identical_ids: bool = False) -> None:
        self._collection = collection
        self._tie_ranks = tie_ranks([passage.id for passage in collection.corpus])
        self._excluded = self._identical() if ignore_identical_ids else None
        self._queries: np.ndarray | None = None
        self._seen = 0
        self._top: TopK | None = None

    def _identical(self) -> np.ndarray:
        tie_rank = {one.id: int(at) for one, at in zip(self._collection.corpus, self._tie_ranks, strict=True)}
        found = [(at, tie_rank.get(query.id)) for at, query in enumerate(self._collection.queries)]
        return np.array([pair for pair in found if pair[1] is not None], np.int64).reshape(-1, 2)

    def add_queries(self, numbers: Sequence[int], vectors: np.ndarray) -> None:
        """Add embeddings of queries. numbers: their indexes in the collection; vectors: float32[n, dimension]."""
        if self._queries is None:
            self._queries = np.zeros(
                (len(self._collection.queries), vectors.shape[1]), np.float32
            )  # [Q, dimension]
        self._queries[list(numbers)] = vectors
        self._seen += len(numbers)

    def add_passages(self, numbers: Sequence[int], vectors: np.ndarray) -> None:
        """Add embeddings of passages, after those of all queries."""
        if self._top is None:
            assert self._queries is not None
            assert self._seen == len(self._queries)
            self._top = TopK(self._queries, DEPTH, self._excluded)
        self._top.add(self._tie_ranks[list(numbers)], vectors)

    def results(self) -> list[SearchResult]:
        """The ranking and metrics of every query, in order."""
        assert self._top is not None
        numbers = np.argsort(self._tie_ranks)  # [P]: tie rank -> index in the corpus
        return [
            SearchResult(
                passages := numbers[at].tolist(),
                scores.tolist(),
                relevance(passages, grades),
            )
            for (at, scores), grades in zip(self._top.ranked(), self._collection.grades, strict=True)
        ]
