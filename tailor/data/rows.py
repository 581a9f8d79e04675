"""Rows: which tokens go through the model together, as examples or as stretches of joined examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Stream:
    """Examples joined end to end. examples: int[k], in their order; ends: int[k], where each ends, in tokens."""

    examples: np.ndarray
    ends: np.ndarray

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(example, from, to) of the parts of examples that tokens [start, stop) of the stream are."""
        at = int(np.searchsorted(self.ends, start, side="right"))
        while start < stop:
            end = int(self.ends[at])
            begin = int(self.ends[at - 1]) if at else 0
            yield int(self.examples[at]), start - begin, min(end, stop) - begin
            start, at = end, at + 1


@dataclass(frozen=True, eq=False)
class Stretch:
    """A row cut out of a stream: tokens [start, stop] of it. Each but the last is read and predicts the next."""

    stream: Stream
    start: int
    stop: int

    @property
    def pieces(self) -> list[tuple[int, int, int]]:
        """(example, from, to) of the row's tokens, with the last one, which is only predicted."""
        return list(self.stream.pieces(self.start, self.stop + 1))


Row = tuple[int, ...] | Stretch
"""A pack of examples, or one example; or a stretch of joined ones."""
Batch = list[Row]


def examples_of(row: Row) -> list[int]:
    """The examples that a row shows, whole or in part."""
    return [example for example, _, _ in row.pieces] if isinstance(row, Stretch) else list(row)


def join(examples: np.ndarray, lengths: np.ndarray, row_length: int) -> list[Stretch]:
    """One stream of all examples, cut into rows that read `row_length` tokens; the last may be shorter.

    examples: int[k] indices; lengths: int[n]. A row's last prediction is the next row's first token, so every
    token of the stream but the first is predicted once, and every token but the last is read once.
    """
    stream = Stream(examples, np.cumsum(lengths[examples], dtype=np.int64))
    last = int(stream.ends[-1]) - 1 if len(examples) else 0
    return [Stretch(stream, start, min(start + row_length, last)) for start in range(0, last, row_length)]
