"""A split of the token store: examples as token ids and supervised spans, read from memory-mapped shards where needed."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntFlag
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from tailor.data.blocks import Blocks, measure
from tailor.data.distinct import text_hashes
from tailor.data.shards import TYPES, Block, OpenShard, Shard, join

OPEN_SHARDS = 512
"""Shards of a split that are open at the same time. Each has about 2 KiB per record batch, and its short columns."""


class Missing(IntFlag):
    """The tokens of a row that its example lacks, because the row was longer than `data.max_length`.

    START: of a later chunk too, although it repeats BOS and the system turn from the row's start.
    """

    START = 1
    END = 2
    MIDDLE = 4


class RowId(NamedTuple):
    """A data row: the index of its source in the recipe's list, the file's name, and the row number in it, from 1."""

    source: int
    file: str
    row: int

    def __str__(self) -> str:
        return f"source {self.source} {self.file}:{self.row}"


@dataclass(frozen=True)
class Example:
    """One example. Both arrays are read-only views of the memory map.

    input_ids: int32 [T]; spans: int32 [k, 2], half-open ranges of supervised tokens; is_positive: as in `Split`.
    """

    input_ids: np.ndarray
    spans: np.ndarray
    is_positive: bool = True


class Column:
    """A column of a split: indexed as an array, by a number, a slice or an array. Reads only the shards that it needs."""

    def __init__(self, split: Split, name: str) -> None:
        self._split, self._name = split, name

    def __len__(self) -> int:
        return len(self._split)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole: np.ndarray = getattr(self._split, self._name)
        return whole if dtype is None else whole.astype(dtype)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            assert index.step in (None, 1)
            return self._range(start, stop)
        indices = np.asarray(index, np.int64)
        shards = np.searchsorted(self._split.shard_starts, indices, side="right") - 1
        found = np.zeros(indices.shape, TYPES[self._name])
        for shard in np.unique(shards):
            chosen = shards == shard
            found[chosen] = self._of(int(shard))[indices[chosen] - self._split.shard_starts[shard]]
        return found[()]

    def _range(self, start: int, stop: int) -> np.ndarray:
        starts = self._split.shard_starts
        parts = []
        shard = int(np.searchsorted(starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(starts[shard + 1]))
            parts.append(self._of(shard)[start - int(starts[shard]) : end - int(starts[shard])])
            start, shard = end, shard + 1
        return parts[0] if len(parts) == 1 else join(parts, TYPES[self._name])

    def _of(self, shard: int) -> np.ndarray:
        return self._split.opened(shard).column(self._name)


def _whole(name: str) -> cached_property[np.ndarray]:
    """A complete column as an array. Reading it opens every shard."""

    def joined(split: Split) -> np.ndarray:
        parts = [split.opened(shard).column(name) for shard in range(split.shards)]
        return join(parts, TYPES[name])

    return cached_property(joined)


class Split:
    """The examples of one split, in the order of the sources, files and rows. Shards are opened when they are needed.

    lengths: int32 [n] tokens. supervised: int32 [n] supervised targets (the first token of an example
    is never a target, because nothing predicts it). source: int16 [n] index in the recipe's `data.train`
    list, or in `data.evaluation` for rows of an evaluation source. file: int32 [n] index in `files`.
    row: int64 [n] row number in the file, from 1. position: int16 [n] position in the example's group,
    from 0. is_positive: bool [n] False for a rejected or undesirable answer, and for a negative passage.
    missing: uint8 [n] `Missing` flags. files: names of the files, as in messages. dataset: int32 [n], equal for the rows of
    one dataset of a source: a file, or the rows with one value in the source's `dataset_column`. score: float32 [n] a
    teacher's score of a passage, NaN without one. Each of these is read as a whole; `column` reads parts.
    """

    lengths, supervised, source = _whole("lengths"), _whole("supervised"), _whole("source")
    file, dataset, row = _whole("file"), _whole("dataset"), _whole("row")
    position, is_positive = _whole("position"), _whole("is_positive")
    missing, score = _whole("missing"), _whole("score")

    def __init__(
        self, shards: Sequence[Shard], blocks: Callable[[int], Blocks | None] = lambda row_length: None
    ) -> None:
        """blocks: reads the table of blocks for rows of a length, None if there is none."""
        self._shards, self._read_blocks = shards, blocks
        numbers: dict[str, int] = {}
        datasets: dict[tuple[bool, str], int] = {}
        self._names = []
        for shard in shards:
            files = [numbers.setdefault(name, len(numbers)) for name in shard.files]
            keys = [(True, name) for name in shard.datasets] or [(False, name) for name in shard.files]
            named = [datasets.setdefault(key, len(datasets)) for key in keys]
            self._names.append((np.array(files, np.int32), np.array(named, np.int32)))
        self.files = tuple(numbers)
        self.opened = lru_cache(maxsize=OPEN_SHARDS)(self._open)
        counts = [
            len(self.opened(number)) if shard.examples is None else shard.examples
            for number, shard in enumerate(shards)
        ]
        self.shard_starts = np.cumsum([0, *counts])
        """int64[shards + 1]: the examples before each shard."""

    def _open(self, number: int) -> OpenShard:
        return self._shards[number].open(*self._names[number])

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self._shards)

    def fetch(self, shard: int) -> None:
        """Copy a shard of a remote store to this machine, unless it is there."""
        self._shards[shard].path()

    def column(self, name: str) -> Column:
        """A column of this name, of which parts are read."""
        return Column(self, name)

    def blocks(self, row_length: int) -> Blocks:
        """The table of blocks, as preparation wrote it; measured here for the stores of earlier versions."""
        if (found := self._read_blocks(row_length)) is not None:
            return found
        names = ("lengths", "supervised", "source", "position")
        return Blocks.join(
            measure(*(self.opened(shard).column(name) for name in names), row_length)
            for shard in range(self.shards)
        )

    def _at(self, index: int) -> tuple[Block, int]:
        """The record batch of an example, and its index there. IndexError when out of range."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        shard = int(np.searchsorted(self.shard_starts, index, side="right")) - 1
        opened, within = self.opened(shard), index - int(self.shard_starts[shard])
        number = int(np.searchsorted(opened.starts, within, side="right")) - 1
        return opened.blocks[number], within - int(opened.starts[number])

    def row_id(self, index: int) -> RowId:
        """The data row of example `index`. A row can have several examples; they are consecutive."""
        block, at = self._at(index)
        return RowId(int(block.source[at]), self.files[block.file[at]], int(block.row[at]))

    def rows(self) -> Iterator[tuple[RowId, list[int]]]:
        """(data row, indices of its examples) of each row, in order."""
        for row_id, indices in itertools.groupby(range(len(self)), key=self.row_id):
            yield row_id, list(indices)

    @property
    def row_count(self) -> int:
        """Number of data rows that have an example."""
        places = np.stack([self.source.astype(np.int64), self.file.astype(np.int64), self.row])  # [3, n]
        return int((places[:, 1:] != places[:, :-1]).any(0).sum()) + bool(len(self))

    def __len__(self) -> int:
        return int(self.shard_starts[-1])

    def _blocks(self) -> Iterator[Block]:
        for shard in range(self.shards):
            yield from self.opened(shard).blocks

    def digest(self) -> str:
        """A hash of the examples in their order: their tokens, what is supervised, their groups and scores."""
        columns = ("ids", "spans", "position", "is_positive")
        parts = [hashlib.sha256() for _ in (*columns, "lengths")]
        for block in self._blocks():
            for part, name in zip(parts, columns, strict=False):
                part.update(np.ascontiguousarray(getattr(block, name)).tobytes())
            parts[-1].update(np.stack([np.diff(block.id_offsets), np.diff(block.span_offsets)], 1).tobytes())
        whole = hashlib.sha256(b"".join(part.digest() for part in parts))
        if not np.isnan(self.score).all():
            whole.update(self.score.tobytes())
        return whole.hexdigest()

    def example(self, index: int) -> Example:
        """Example `index`, counted from 0. IndexError when out of range."""
        block, at = self._at(index)
        ids = block.ids[block.id_offsets[at] : block.id_offsets[at + 1]]
        spans = block.spans[block.span_offsets[at] : block.span_offsets[at + 1]]
        return Example(ids, spans.reshape(-1, 2), bool(block.is_positive[at]))

    def text_hashes(self) -> np.ndarray:
        """uint64[n]: a hash of the tokens of each example's first span, which for a text to embed is the text itself."""
        hashes = [np.zeros(0, np.uint64)]
        for block in self._blocks():
            first, has_spans = block.span_offsets[:-1], np.diff(block.span_offsets) > 0
            start, stop = (
                np.where(has_spans, np.append(block.spans, [0, 0])[first + side], 0) for side in (0, 1)
            )
            before = block.id_offsets[:-1].astype(np.int64)
            hashes.append(text_hashes(block.ids, before + start, before + stop))
        return np.concatenate(hashes)
