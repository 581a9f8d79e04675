"""A collection searched by the embeddings of its texts, which come batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tailor.evaluate.retrieval.collection import Collection
from tailor.evaluate.retrieval.metrics import DEPTH, relevance
from tailor.evaluate.retrieval.ranking import Best, places


@dataclass(frozen=True)
class Found:
    """What a query found. passages: numbers in the corpus, best first, with their scores; figures: of this query."""

    passages: list[int]
    scores: list[float]
    figures: dict[str, float]


class Search:
    """Takes the queries' embeddings, then the passages', and ranks. Only queries and one batch are in memory."""

    def __init__(self, collection: Collection, *, ignore_identical_ids: bool = False) -> None:
        self._collection = collection
        self._places = places([passage.id for passage in collection.corpus])
        self._excluded = self._identical() if ignore_identical_ids else None
        self._queries: np.ndarray | None = None
        self._seen = 0
        self._best: Best | None = None

    def _identical(self) -> np.ndarray:
        place = {one.id: int(at) for one, at in zip(self._collection.corpus, self._places, strict=True)}
        return np.array([place.get(query.id, -1) for query in self._collection.queries])

    def add_queries(self, numbers: Sequence[int], vectors: np.ndarray) -> None:
        """numbers: of queries in the collection; vectors: float32[n, dimension]."""
        if self._queries is None:
            self._queries = np.zeros((len(self._collection.queries), vectors.shape[1]), np.float32)
        self._queries[list(numbers)] = vectors
        self._seen += len(numbers)

    def add_passages(self, numbers: Sequence[int], vectors: np.ndarray) -> None:
        """The same of passages, after all queries."""
        if self._best is None:
            assert self._queries is not None
            assert self._seen == len(self._queries)
            self._best = Best(self._queries, DEPTH, self._excluded)
        self._best.add(self._places[list(numbers)], vectors)

    def found(self) -> list[Found]:
        """Of every query."""
        assert self._best is not None
        numbers = np.argsort(self._places)
        return [
            Found(
                passages := numbers[at].tolist(),
                scores.tolist(),
                relevance(passages, grades),
            )
            for (at, scores), grades in zip(self._best.ranked(), self._collection.grades, strict=True)
        ]
