"""Signatures of many rows in temporary files, so that memory does not grow with them, and which rows are similar."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tailor.encode.similarity.signatures import PERMUTATIONS, WIDTH
from tailor.encode.similarity.words import mixed

SIMILARITY = 0.7
"""Rows whose prompts and answers each have at least this estimated Jaccard similarity are near duplicates."""
BANDS, BAND = 25, 5
"""Bands of locality-sensitive hashing and values per band: a pair of similarity 0.8 shares a band in 99.99 % of cases."""
_PAIRS = 1 << 13
"""Pairs compared at a time: 16 MB of signatures."""
_BLOCK = 1024


class Blocks:
    """Collects signatures in blocks of many rows, which need less memory than an array per row."""

    def __init__(self) -> None:
        self.full: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []

    def append(self, signature: np.ndarray) -> None:
        self._rows.append(signature)
        if len(self._rows) == _BLOCK:
            self.close()

    def close(self) -> list[np.ndarray]:
        """All blocks, each uint32 [n, WIDTH]."""
        if self._rows:
            self.full.append(np.stack(self._rows))
            self._rows = []
        return self.full


class SignatureFile:
    """Signatures (1 KB per row) and band keys (200 B per row) of tasks, in files of a temporary folder."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tailor-signatures-")
        self._tasks: dict[int, tuple[int, int]] = {}
        """Task -> (first row in the files, rows). Tasks come in any order."""
        self._rows = 0

    def __enter__(self) -> SignatureFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def add(self, task: int, blocks: Sequence[np.ndarray]) -> None:
        """Append the signatures of a task, in blocks of uint32 [n, WIDTH]."""
        count = sum(map(len, blocks))
        self._tasks[task] = (self._rows, count)
        self._rows += count
        with self._path("signatures").open("ab") as stream:
            for block in blocks:
                stream.write(np.ascontiguousarray(block, np.uint32).data)
        # The signature of the whole row: that of a union is the minimum of both.
        wholes = [np.minimum(block[:, :PERMUTATIONS], block[:, PERMUTATIONS:]) for block in blocks]  # [n, P]
        for band in range(BANDS):
            with self._path(f"keys-{band}").open("ab") as stream:
                for whole in wholes:
                    stream.write(_keys(whole[:, band * BAND : (band + 1) * BAND]).data)

    def first_similar(self, first_equal: np.ndarray) -> np.ndarray:
        """int64 [N]: for each row the first row of its group of near duplicates, itself if there is none before it.

        Rows count in the order of the tasks. first_equal: int64 [N], the first row with the same content. A group is a
        connected component: each of its rows is similar to another one. The result does not depend on the tasks.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        count = len(first_equal)
        assert count == self._rows
        distinct = np.flatnonzero(first_equal == np.arange(count))
        groups = first_equal.copy()
        if len(distinct) < 2:
            return groups
        position = self._positions()
        signatures = np.memmap(self._path("signatures"), np.uint32, "r", shape=(count, WIDTH))
        for band in range(BANDS):
            keys = np.fromfile(self._path(f"keys-{band}"), np.uint64)[position[distinct]]
            linked = []
            for left, right in _candidates(keys):
                left, right = distinct[left], distinct[right]
                apart = groups[left] != groups[right]
                left, right = left[apart], right[apart]
                similar = _are_similar(signatures, position[left], position[right])
                linked.append(np.stack([groups[left[similar]], groups[right[similar]]]))
            edges = np.concatenate(linked, axis=1) if linked else np.zeros((2, 0), np.int64)
            if edges.size:
                graph = coo_array((np.ones(edges.shape[1], bool), (edges[0], edges[1])), shape=(count, count))
                _, labels = connected_components(graph, directed=False)
                _, firsts = np.unique(labels, return_index=True)
                groups = firsts[labels][groups]
        return groups

    def _positions(self) -> np.ndarray:
        """int64 [N]: the row in the files of each row in the order of the tasks."""
        ordered = [np.arange(start, start + count) for _, (start, count) in sorted(self._tasks.items())]
        return np.concatenate(ordered) if ordered else np.zeros(0, np.int64)

    def _path(self, name: str) -> Path:
        return Path(self._folder.name) / name


def _keys(block: np.ndarray) -> np.ndarray:
    """uint64 [n]: a hash of each row of uint32 [n, BAND]."""
    total = np.zeros(len(block), np.uint64)
    for column in block.T:
        total = mixed(total ^ column.astype(np.uint64))
    return total


def _candidates(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of rows with equal keys: each row with the one before it, and with the first one."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    at = np.arange(len(ordered))
    start = np.repeat(begins, np.diff([*begins, len(ordered)]))
    follows = at > start
    for before in (start, at - 1):
        left, right = order[before[follows]], order[follows]
        for begin in range(0, len(left), _PAIRS):
            yield left[begin : begin + _PAIRS], right[begin : begin + _PAIRS]


def _are_similar(signatures: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """bool [n]: whether both the prompts and the answers of pairs of rows are similar."""
    equal = signatures[left] == signatures[right]  # [n, WIDTH]
    shares = equal.reshape(len(left), 2, PERMUTATIONS).mean(axis=2)  # [n, 2]
    similar: np.ndarray = (shares >= SIMILARITY).all(axis=1)
    return similar


def first_equal(hashes: np.ndarray) -> np.ndarray:
    """int64 [N]: for each row the first row with the same hash, itself if there is none before it."""
    _, firsts, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    found: np.ndarray = firsts[inverse]
    return found
