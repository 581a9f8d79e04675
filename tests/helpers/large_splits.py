"""Splits of many examples that exist only as a rule: the lengths of one shard, repeated."""

from __future__ import annotations

from typing import Any

import numpy as np

from tailor.data.blocks import Blocks, measure
from tailor.data.large_batches import LargeBatches
from tailor.plan.batches import BatchSpec


class Repeated:
    """A column that repeats the values of a shard. read: how many values have been read."""

    def __init__(self, shard: np.ndarray, shards: int) -> None:
        self._shard, self._shards, self.read = shard, shards, 0

    def __len__(self) -> int:
        return len(self._shard) * self._shards

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        found = self._shard[np.asarray(index) % len(self._shard)]
        self.read += found.size
        return found


def repeated(spec: BatchSpec, lengths: np.ndarray, shards: int) -> LargeBatches:
    """Batches of `shards` shards with these lengths, of one source."""
    nothing = np.zeros(len(lengths), np.int64)
    table = measure(lengths, lengths - 1, nothing, nothing, spec.max_length)
    columns = (Repeated(column, shards) for column in (lengths, lengths - 1, nothing, nothing))
    return LargeBatches(*columns, spec, lambda: Blocks.join([table] * shards))
