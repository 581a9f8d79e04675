"""The top-k passages of each query, computed in tiles, so that the full score matrix is never in memory.

The order is that of trec_eval: by descending score, and for equal scores by descending id. A passage is identified by its
tie rank, its index in the order of descending ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TILE = 8192
"""Passages scored at once."""
_QUERIES = 256
"""Queries scored at once: 256 × 8192 keys of 8 bytes are 16 MiB."""
_LAST = np.uint64(0xFFFFFFFF)


def tie_ranks(ids: Sequence[str]) -> np.ndarray:
    """int64[P]: each passage's index when the ids are sorted in descending order, as trec_eval orders ties."""
    order = sorted(range(len(ids)), key=ids.__getitem__, reverse=True)
    ranks = np.empty(len(ids), np.int64)  # [P]
    ranks[order] = np.arange(len(ids))
    return ranks


class TopK:
    """The `count` best passages of each query among those added so far.

    queries: float32[Q, dimension]. excluded: int64[k, 2], pairs (query, tie rank of a passage) that must not be retrieved.
    ceilings: float32[Q], a query retrieves only passages with a lower score.
    """

    def __init__(
        self,
        queries: np.ndarray,
        count: int,
        excluded: np.ndarray | None = None,
        ceilings: np.ndarray | None = None,
    ) -> None:
        self._queries = queries
        self._count = count
        pairs = np.zeros((0, 2), np.int64) if excluded is None else excluded  # [k, 2]
        self._excluded = pairs[np.argsort(pairs[:, 0], kind="stable")]  # [k, 2], by query
        self._ceilings = ceilings
        self._keys = np.empty((len(queries), 0), np.uint64)

    def add(self, tie_ranks: np.ndarray, passages: np.ndarray) -> None:
        """Score more passages. tie_ranks: int64[P], each rank at most once; passages: float32[P, dimension]."""
        for start in range(0, len(tie_ranks), TILE):
            self._add(tie_ranks[start : start + TILE], passages[start : start + TILE])

    def _add(self, tie_ranks: np.ndarray, passages: np.ndarray) -> None:
        merged, order = [], np.argsort(tie_ranks)
        for start in range(0, len(self._queries), _QUERIES):
            stop = start + _QUERIES
            scores = self._queries[start:stop] @ passages.T  # [Q, P]
            keys = _keys(scores, tie_ranks)  # [Q, P]
            if self._ceilings is not None:
                keys[scores >= self._ceilings[start:stop, None]] = 0
            first, last = np.searchsorted(self._excluded[:, 0], (start, stop))
            query, rank = self._excluded[first:last].T  # [pairs of these queries] each
            at = np.minimum(np.searchsorted(tie_ranks, rank, sorter=order), len(order) - 1)
            is_here = tie_ranks[order[at]] == rank
            keys[query[is_here] - start, order[at[is_here]]] = 0
            keys = np.concatenate([self._keys[start:stop], keys], axis=1)  # [Q, up to count + P]
            if keys.shape[1] > self._count:
                keys = np.partition(keys, keys.shape[1] - self._count, axis=1)[:, -self._count :]
            merged.append(keys)
        self._keys = np.concatenate(merged) if merged else self._keys

    def ranked(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The tie ranks and scores of each query's best passages, best first: int64[m] and float32[m] with m ≤ count."""
        ranked = []
        for keys in self._keys:
            keys = np.sort(keys[keys > 0])[::-1]
            ranked.append(((_LAST - (keys & _LAST)).astype(np.int64), _scores(keys)))
        return ranked


def _keys(scores: np.ndarray, tie_ranks: np.ndarray) -> np.ndarray:
    """A sort key for each score, uint64[Q, P], never 0: the score in the upper 32 bits, the inverted tie rank in the lower."""
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)  # [Q, P]; adding 0 turns -0 into 0
    # IEEE 754: the bits of positive floats sort like the floats, those of negative floats in reverse.
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (ordered.astype(np.uint64) << np.uint64(32)) | (_LAST - tie_ranks.astype(np.uint64))


def _scores(keys: np.ndarray) -> np.ndarray:
    """The scores of sort keys: the inverse of `_keys`."""
    ordered = (keys >> np.uint64(32)).astype(np.uint32)
    return (
        np.where(ordered >> 31, ordered & np.uint32(0x7FFFFFFF), ~ordered).astype(np.uint32).view(np.float32)
    )
