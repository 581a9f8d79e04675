"""Negatives for a query whose row has none: passages of other rows, of the same task if there are any."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from tailor.data.split import Split
from tailor.errors import DataError

_ALL = -1
RANKED_HINT = "add rows, or negatives to this one"
"""For a method whose group size is at least 2."""


class OtherNegatives:
    """Draws passages of other groups. All arrays are int or bool [groups]; a group is the examples start to end.

    is_text: whether the group is a query with its passages. units: equal for groups of the same task. queries: number of
    examples of a group before its passages.
    """

    def __init__(
        self, starts: np.ndarray, ends: np.ndarray, is_text: np.ndarray, units: np.ndarray, queries: int = 1
    ) -> None:
        self._queries = queries
        self._starts, self._ends, self._is_text, self._units = starts, ends, is_text, units
        self._pool = lru_cache(maxsize=None)(self._make_pool)

    def draw(self, group: int, count: int, generator: np.random.Generator | None) -> np.ndarray:
        """At most `count` example indices: of passages of other groups of the unit, or of any if the unit has no other group.

        generator: draws them uniformly, without repetition; None takes those after the group, as in a ring. DataError when
        there is no other group with passages.
        """
        start, end = int(self._starts[group]), int(self._ends[group])
        for unit in (int(self._units[group]), _ALL):
            pool = self._pool(unit)
            before, after = np.searchsorted(pool, [start, end])
            others = len(pool) - (after - before)
            if others:
                drawn = np.arange(min(count, others))
                if generator is not None:
                    drawn = generator.choice(others, len(drawn), replace=False)
                return pool[(after + drawn) % len(pool)]
        raise no_others("add rows, or set method.group_size: 1" if self._queries else RANKED_HINT)

    def _make_pool(self, unit: int) -> np.ndarray:
        """The example indices of all passages of a unit, ascending. `_ALL`: of every unit."""
        groups = np.flatnonzero(self._is_text & ((self._units == unit) | (unit == _ALL)))
        counts = self._ends[groups] - self._starts[groups] - self._queries  # passages
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(self._starts[groups] + self._queries, counts) + within


def units_of(split: Split, starts: np.ndarray) -> np.ndarray:
    """int[groups]: equal for the groups of one dataset of one source. starts: int[groups], the first example of each."""
    pairs = np.stack([split.source[starts], split.dataset[starts]], 1)  # [groups, 2]
    numbers: np.ndarray = np.unique(pairs, axis=0, return_inverse=True)[1]
    return numbers.reshape(-1)


def no_others(hint: str) -> DataError:
    """The error for a query without negatives if no other row has a passage for it, which differs from its positives."""
    return DataError("a query has no negative passage, and no other row has one for it", hint=hint)
