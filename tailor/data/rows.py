"""Batch rows: which examples, or which slice of joined examples, go through the model as one row.

`Row` in this package always means a row of a batch. A row of a source file is called a data row; `encode.records` lists all
names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Stream:
    """Concatenated examples. examples: int[k] indices in order; ends: int[k] end of each example in the stream, in tokens."""

    examples: np.ndarray
    ends: np.ndarray

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Map tokens [start, stop) of the stream to parts of examples: yields (example, start, stop) within each example."""
        index = int(np.searchsorted(self.ends, start, side="right"))
        while start < stop:
            end = int(self.ends[index])
            begin = int(self.ends[index - 1]) if index else 0
            yield int(self.examples[index]), start - begin, min(end, stop) - begin
            start, index = end, index + 1


@dataclass(frozen=True, eq=False)
class StreamSlice:
    """A row that is a slice of a stream: tokens start to stop, both included.

    The model reads the tokens [start, stop); each predicts its successor, so token `stop` is only a target.
    """

    stream: Stream
    start: int
    stop: int

    @property
    def pieces(self) -> list[tuple[int, int, int]]:
        """(example, start, stop) of the row's tokens, including the last one, which is only a target."""
        return list(self.stream.pieces(self.start, self.stop + 1))


Row = tuple[int, ...] | StreamSlice
"""A row of a batch: the indices of its examples (several if packed), or a slice of joined examples."""
Batch = list[Row]
"""The rows of one optimizer step, over all workers."""


def examples_of(row: Row) -> list[int]:
    """The indices of the examples that a row contains, completely or in part."""
    return [example for example, _, _ in row.pieces] if isinstance(row, StreamSlice) else list(row)


def join(examples: np.ndarray, lengths: np.ndarray, row_length: int) -> list[StreamSlice]:
    """Concatenate all examples and cut the stream into rows of `row_length` tokens; the last may be shorter.

    examples: int[k] indices; lengths: int[n] tokens. The last target of a row is the first token of the next row. So
    every token of the stream except the first is a target once, and every token except the last is an input once.
    """
    stream = Stream(examples, np.cumsum(lengths[examples], dtype=np.int64))
    last = int(stream.ends[-1]) - 1 if len(examples) else 0
    return [StreamSlice(stream, start, min(start + row_length, last)) for start in range(0, last, row_length)]


def micro_batches(batch: Batch, size: int) -> list[Batch]:
    """Split a batch into micro-batches of `size` rows. The split does not depend on the number of workers."""
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def share(batch: Batch, size: int, rank: int, world: int) -> list[tuple[int, Batch]]:
    """The micro-batches of one worker, as (global number, micro-batch). Every worker gets the same number of them.

    If the batch does not divide evenly, the last ones are empty: their workers still take part in collectives.
    """
    parts = micro_batches(batch, size)
    rounds = -(-len(parts) // world)
    numbers = range(rank, rounds * world, world)
    return [(number, parts[number] if number < len(parts) else []) for number in numbers]
