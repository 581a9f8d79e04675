"""The shards of a split: Arrow files of examples, memory-mapped when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from tailor.data.arrow import bits_to_numpy, to_numpy
from tailor.errors import StoreError

_ATTEMPTS = 5
"""How often a shard is fetched if other processes remove it before it is open."""


@dataclass(frozen=True)
class Shard:
    """A shard. path: gives its file on this machine, when the shard is needed. first_row: rows of its file before it.

    files, datasets: names that its columns count. examples: their number; None in stores of earlier versions.
    """

    path: Callable[[], Path]
    first_row: int
    files: Sequence[str]
    datasets: Sequence[str]
    examples: int | None = None

    def open(self, files: np.ndarray, datasets: np.ndarray) -> OpenShard:
        """Memory-map the shard. files, datasets: int32[k], the number in the split of each of its names."""
        blocks = []
        for attempt in range(_ATTEMPTS):
            path = self.path()
            try:
                mapped = pa.memory_map(str(path))
                break
            except (
                FileNotFoundError
            ) as error:  # another process has removed it from the cache of this machine
                if attempt == _ATTEMPTS - 1:
                    raise self._unreadable(path, error) from None
        try:
            with mapped, pa.ipc.open_file(mapped) as reader:
                for index in range(reader.num_record_batches):
                    blocks.append(_block(reader.get_batch(index), self.first_row, files, datasets))
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(path, error) from None
        return OpenShard(blocks)

    def _unreadable(self, path: Path, error: Exception) -> StoreError:
        return StoreError(
            f"{path} cannot be read: {error}",
            hint=f"remove {path.parent} and run the same command again: it prepares the tokens again",
        )


@dataclass(frozen=True)
class Block:
    """One Arrow record batch: values and offsets of the two list columns, and the other columns."""

    ids: np.ndarray
    id_offsets: np.ndarray
    spans: np.ndarray
    span_offsets: np.ndarray
    source: np.ndarray
    file: np.ndarray
    dataset: np.ndarray
    row: np.ndarray
    position: np.ndarray
    is_positive: np.ndarray
    missing: np.ndarray
    score: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """int32[n]: tokens of each example."""
        return np.diff(self.id_offsets)

    @property
    def supervised(self) -> np.ndarray:
        """int64[n]: supervised targets of each example."""
        pairs = self.spans.reshape(-1, 2)  # [k, 2]
        total = np.concatenate([[0], np.cumsum(supervised_targets(pairs))])  # [k + 1]
        return np.diff(total[self.span_offsets // 2])


TYPES = {
    "lengths": np.int32,
    "supervised": np.int32,
    "source": np.int16,
    "file": np.int32,
    "dataset": np.int32,
    "row": np.int64,
    "position": np.int16,
    "is_positive": np.bool_,
    "missing": np.uint8,
    "score": np.float32,
}


class OpenShard:
    """An open shard. starts: int64[blocks + 1], its examples before each block."""

    def __init__(self, blocks: list[Block]) -> None:
        self.blocks = blocks
        self.starts = np.cumsum([0, *(len(block.row) for block in blocks)])
        self._columns: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def column(self, name: str) -> np.ndarray:
        if name not in self._columns:
            self._columns[name] = join([getattr(block, name) for block in self.blocks], TYPES[name])
        return self._columns[name]


def supervised_targets(spans: np.ndarray) -> np.ndarray:
    """Number of targets in each span. spans: [k, 2] -> [k]. The token at position 0 is never a target."""
    targets: np.ndarray = np.maximum(spans[:, 1] - np.maximum(spans[:, 0], 1), 0)  # [k]
    return targets


def _block(batch: pa.RecordBatch, first_row: int, files: np.ndarray, datasets: np.ndarray) -> Block:
    """files, datasets: int32[k], the number in the split of each of the shard's files and datasets."""
    ids, spans = batch.column("input_ids"), batch.column("spans")
    return Block(
        ids=to_numpy(ids.values),
        id_offsets=to_numpy(ids.offsets),
        spans=to_numpy(spans.values),
        span_offsets=to_numpy(spans.offsets),
        source=to_numpy(batch.column("source")),
        file=files[to_numpy(batch.column("file"))],
        dataset=datasets[to_numpy(batch.column("dataset"))],
        row=to_numpy(batch.column("row")) + first_row,
        position=to_numpy(batch.column("position")),
        is_positive=bits_to_numpy(batch.column("is_positive")),
        missing=to_numpy(batch.column("missing")),
        score=_scores(batch),
    )


def _scores(batch: pa.RecordBatch) -> np.ndarray:
    """float32[n]. Shards of earlier versions have none."""
    if "score" not in batch.schema.names:
        return np.full(batch.num_rows, np.nan, np.float32)
    return to_numpy(batch.column("score"))


def join(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)
