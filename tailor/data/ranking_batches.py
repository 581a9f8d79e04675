"""Batches of a reranker: each row is a query with its passages, as one pair of texts per passage."""

from __future__ import annotations

import numpy as np

from tailor.data.batches import Batches, BatchSpec
from tailor.data.rows import Batch, Row
from tailor.data.token_store import Split


class RankingBatches(Batches):
    """A training row has one positive and `spec.ranked - 1` negatives, drawn again in each epoch; an evaluation row has all
    passages of the query. The pair of a positive passage always comes first."""

    def __init__(self, split: Split, spec: BatchSpec) -> None:
        super().__init__(split.lengths, split.supervised, split.source, spec, split.position)
        assert spec.ranked is not None
        self._ranked = spec.ranked
        self._is_positive = np.asarray(split.is_positive)
        self._whole = self._sizes
        """int[groups]: tokens of each group with all its passages."""
        self._sizes = self._ranked * np.array(
            [
                self.lengths[start:end].max(initial=0)
                for start, end in zip(self._starts, self._ends, strict=True)
            ],
            np.int64,
        )  # of the passages drawn, at most

    def supervised_tokens(self, batch: Batch) -> int:
        """0: texts to score have no targets."""
        return 0

    def groups(self, batch: Batch) -> int:
        """Number of queries: each is a row."""
        return len(batch)

    def longest_row(self, evaluation: bool = False) -> int:
        return int((self._whole if evaluation else self._sizes).max(initial=0))

    def _make_epoch(self, epoch: int) -> list[Batch]:
        generator = np.random.default_rng([self.spec.seed, epoch, 1])
        return [
            [self._draw_passages(row, generator) for row in batch] for batch in super()._make_epoch(epoch)
        ]

    def _draw_passages(self, row: Row, generator: np.random.Generator) -> Row:
        assert isinstance(row, tuple)
        members = np.array(row)
        is_positive = self._is_positive[members]
        positives, negatives = members[is_positive], members[~is_positive]
        positive = positives[generator.integers(len(positives))]
        negatives = negatives[generator.permutation(len(negatives))]
        return (int(positive), *(int(negatives[at % len(negatives)]) for at in range(self._ranked - 1)))
