"""The best passages of each query, by tiles: the matrix of all scores is never whole.

The order is that of trec_eval: scores from high to low, and of passages that score the same the later id first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TILE = 8192
"""Passages scored at once."""
_QUERIES = 256
"""Queries scored at once: with a tile of passages, 16 MiB of keys."""
_LAST = np.uint64(0xFFFFFFFF)


def places(ids: Sequence[str]) -> np.ndarray:
    """int64[passages]: each passage's place when the ids go from last to first, as trec_eval orders ties."""
    order = sorted(range(len(ids)), key=ids.__getitem__, reverse=True)
    found = np.empty(len(ids), np.int64)
    found[order] = np.arange(len(ids))
    return found


class Best:
    """The `count` best passages of each query, of those that it has seen so far.

    queries: float32[queries, dimension]. A passage is known by its place (`places`), which decides ties.
    excluded: per query the place of a passage that must not be found, or -1.
    """

    def __init__(self, queries: np.ndarray, count: int, excluded: np.ndarray | None = None) -> None:
        self._queries = queries
        self._count = count
        self._excluded = excluded
        self._keys = np.empty((len(queries), 0), np.uint64)

    def add(self, places: np.ndarray, passages: np.ndarray) -> None:
        """More passages. places: int64[n], each one once; passages: float32[n, dimension]."""
        for start in range(0, len(places), TILE):
            self._add(places[start : start + TILE], passages[start : start + TILE])

    def _add(self, places: np.ndarray, passages: np.ndarray) -> None:
        merged = []
        for start in range(0, len(self._queries), _QUERIES):
            stop = start + _QUERIES
            keys = _keys(self._queries[start:stop] @ passages.T, places)
            if self._excluded is not None:
                keys[self._excluded[start:stop, None] == places] = 0
            keys = np.concatenate([self._keys[start:stop], keys], axis=1)
            if keys.shape[1] > self._count:
                keys = np.partition(keys, keys.shape[1] - self._count, axis=1)[:, -self._count :]
            merged.append(keys)
        self._keys = np.concatenate(merged) if merged else self._keys

    def ranked(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per query the places and the scores of its best passages, best first: int64[m] and float32[m], m ≤ count."""
        found = []
        for keys in self._keys:
            keys = np.sort(keys[keys > 0])[::-1]
            found.append(((_LAST - (keys & _LAST)).astype(np.int64), _scores(keys)))
        return found


def _keys(scores: np.ndarray, places: np.ndarray) -> np.ndarray:
    """One number per score that orders it and, where scores are the same, its passage's place; uint64, never 0."""
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)  # -0 becomes 0
    # IEEE 754: positive numbers are ordered as their bits are, negative ones the other way round.
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (ordered.astype(np.uint64) << np.uint64(32)) | (_LAST - places.astype(np.uint64))


def _scores(keys: np.ndarray) -> np.ndarray:
    ordered = (keys >> np.uint64(32)).astype(np.uint32)
    return (
        np.where(ordered >> 31, ordered & np.uint32(0x7FFFFFFF), ~ordered).astype(np.uint32).view(np.float32)
    )
