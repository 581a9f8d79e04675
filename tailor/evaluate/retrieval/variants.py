"""Searches of a collection with smaller embeddings: fewer dimensions, or fewer bits per dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from tailor.errors import ModelError
from tailor.evaluate.retrieval.precision import Coding, Ranges
from tailor.evaluate.retrieval.search import Search

UNIT = 1e-3
"""Largest difference of a length from 1 in normalized embeddings."""


class Variant(Protocol):
    """Takes the same embeddings as a `Search`, float32[n, E]: first all of queries, then those of passages."""

    search: Search

    def add_queries(self, numbers: Sequence[int], vectors: np.ndarray) -> None: ...

    def add_passages(self, numbers: Sequence[int], vectors: np.ndarray) -> None: ...


class Cut:
    """Keeps the first `size` numbers of each embedding (Matryoshka). Normalized embeddings are normalized again."""

    def __init__(self, search: Search, size: int, key: str) -> None:
        """key: of the recipe, for messages."""
        self.search, self._size, self._key = search, size, key

    def add_queries(self, numbers: Sequence[int], vectors: np.ndarray) -> None:
        """ModelError for a size that is larger than the model's embeddings."""
        if self._size > vectors.shape[1]:
            raise ModelError(
                f"{self._key}: {self._size} is larger than the {vectors.shape[1]} dimensions of the embeddings",
                hint="remove it",
            )
        self.search.add_queries(numbers, self._cut(vectors))

    def add_passages(self, numbers: Sequence[int], vectors: np.ndarray) -> None:
        self.search.add_passages(numbers, self._cut(vectors))

    def _cut(self, vectors: np.ndarray) -> np.ndarray:
        short = vectors[:, : self._size]
        lengths = np.linalg.norm(vectors, axis=1)
        if not np.all(abs(lengths - 1) <= UNIT):
            return short
        return short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), np.float32(1e-12))


class Coded:
    """Searches passages that are stored quantized. Queries keep their precision."""

    def __init__(self, search: Search, coding: Coding) -> None:
        self.search, self._coding = search, coding
        self._seen: Ranges | None = None
        """Ranges of the queries."""

    def add_queries(self, numbers: Sequence[int], vectors: np.ndarray) -> None:
        ranges = Ranges.of(vectors)
        self._seen = ranges if self._seen is None else self._seen.joined(ranges)
        self.search.add_queries(numbers, vectors)

    def add_passages(self, numbers: Sequence[int], vectors: np.ndarray) -> None:
        if self._coding.ranges is None:
            assert self._seen is not None
            self._coding = replace(self._coding, ranges=self._seen.joined(Ranges.of(vectors)))
        stored = self._coding.encode(vectors)
        self.search.add_passages(numbers, self._coding.decode(stored, vectors.shape[1]))
