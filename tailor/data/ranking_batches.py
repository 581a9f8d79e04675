"""Batches of a reranker: each row is a query with its passages, as one pair of texts per passage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from tailor.data.batches import Batches, BatchSpec
from tailor.data.other_negatives import RANKED_HINT, OtherNegatives, no_others, units_of
from tailor.data.rows import Batch, Row
from tailor.data.split import Split

_SPARE = 8
"""Passages drawn beyond those needed, as some may be equal to a positive of the row."""


class RankingBatches(Batches):
    """A training row has one positive and `spec.ranked - 1` negatives, drawn again in each epoch; an evaluation row has all
    passages of the query. The pair of a positive passage always comes first.

    If a query has no negatives, its row has pairs of other queries, whose passages are then read with this query: see `is_own`.
    """

    def __init__(self, split: Split, spec: BatchSpec) -> None:
        super().__init__(split.lengths, split.supervised, split.source, spec, split.position)
        assert spec.ranked is not None
        self._split = split
        self._ranked = spec.ranked
        self._is_positive = np.asarray(split.is_positive)
        negatives = np.concatenate([[0], np.cumsum(~self._is_positive)])
        self._lacks = negatives[self._ends] == negatives[self._starts]
        """bool[groups]: True for a query without negatives."""
        every = np.ones(len(self._starts), bool)
        units = units_of(split, self._starts)
        self._others = OtherNegatives(self._starts, self._ends, every, units, queries=0)
        longest = np.zeros(0, np.int64)  # of an empty split
        if len(self._starts):
            longest = np.maximum.reduceat(self.lengths, self._starts)
        filled = np.minimum(longest + self.lengths.max(initial=0), spec.max_length)
        longest = np.where(self._lacks, np.maximum(longest, filled), longest)
        self._whole = np.where(self._lacks, self._sizes + (self._ranked - 1) * longest, self._sizes)
        """int[groups]: tokens of each group with all its passages, at most."""
        self._groups = replace(self._groups, sizes=self._ranked * longest)  # of the passages drawn, at most

    def supervised_tokens(self, batch: Batch) -> int:
        """0: texts to score have no targets."""
        return 0

    def groups(self, batch: Batch) -> int:
        """Number of queries: each is a row."""
        return len(batch)

    def rows(self) -> list[Row]:
        return [
            (*row, *self._filled(group, None)) if self._lacks[group] else row
            for group, row in enumerate(super().rows())
            if isinstance(row, tuple)
        ]

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
        if not len(negatives):
            group = int(np.searchsorted(self._starts, row[0], side="right")) - 1
            negatives = self._filled(group, generator)
        return (int(positive), *(int(negatives[at % len(negatives)]) for at in range(self._ranked - 1)))

    def _filled(self, group: int, generator: np.random.Generator | None) -> np.ndarray:
        """Pairs of other queries, at most `ranked - 1`, without those whose passage is one of the group's own positives.

        DataError when there are no others.
        """
        own = self._hashes[self._starts[group] : self._ends[group]]
        for count in (self._ranked - 1 + _SPARE, len(self._hashes)):  # all only where most passages are equal
            drawn = self._others.draw(group, count, generator)
            other = drawn[~np.isin(self._hashes[drawn], own)][: self._ranked - 1]
            if len(other) == self._ranked - 1:
                break
        if not len(other):
            raise no_others(RANKED_HINT)
        return other

    @cached_property
    def _hashes(self) -> np.ndarray:
        """uint64[examples]: hashes of the passages."""
        return self._split.text_hashes()


def is_own(split: Split, row: Sequence[int]) -> np.ndarray:
    """bool[n]: whether the pairs of a row are of its first pair's query. The others fill a row without negatives."""
    members = np.asarray(row)
    starts = members - np.asarray(split.position[members])
    return np.asarray(starts == starts[0])
