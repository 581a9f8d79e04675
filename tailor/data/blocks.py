"""Blocks: runs of consecutive examples with their sums, so that the batches of a large split are known without its examples.

A block has whole groups of one source and one shard. Preparation measures the blocks of each shard in its task, and keeps
the table of a split as an Arrow file beside the shards. It has about one row per thousand examples.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from tailor.data.arrangement import Groups
from tailor.data.arrow import to_arrow, to_numpy
from tailor.data.packing import pack
from tailor.data.shards import join
from tailor.errors import StoreError
from tailor.store import Store

BLOCK = 1024
"""Groups of a block. Larger blocks fill rows better; smaller ones mix better: a window has as many blocks as it can."""
MIN_ROWS, MAX_ROWS = 64, 4096
"""Limits of a block's tokens, in full rows. With 20 rows, the last one of each block would leave 2.5 % empty."""
_CAPACITY = b"row_length"


class Values(Protocol):
    """A column of examples: an array, or one that is read where it is needed (`split.Column`)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Any: ...


@dataclass(frozen=True)
class Blocks:
    """The blocks of a split in the order of the store; all arrays are int64[blocks].

    first: its first example; examples, groups, tokens, supervised: their numbers; rows: rows of at most the row length into
    which its groups are packed; longest: tokens of its longest group; longest_example; source: index of its source;
    shard: index of its shard in the split.
    """

    first: np.ndarray
    examples: np.ndarray
    groups: np.ndarray
    tokens: np.ndarray
    supervised: np.ndarray
    rows: np.ndarray
    longest: np.ndarray
    longest_example: np.ndarray
    source: np.ndarray
    shard: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    @classmethod
    def join(cls, shards: Iterable[Blocks]) -> Blocks:
        """The blocks of several shards, whose examples follow each other."""
        parts, first, number = [cls.of_columns(np.zeros((len(fields(cls)), 0), np.int64))], 0, 0
        for number, part in enumerate(shards):
            columns = {field.name: getattr(part, field.name) for field in fields(cls)}
            columns |= {"first": part.first + first, "shard": np.full(len(part), number)}
            parts.append(cls(**columns))
            first += int(part.examples.sum())
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @classmethod
    def of_columns(cls, columns: np.ndarray | Sequence[np.ndarray]) -> Blocks:
        return cls(*(np.asarray(column, np.int64) for column in columns))

    def write(self, store: Store, name: str, row_length: int) -> None:
        """Write an Arrow file. row_length: for which `rows` is counted."""
        arrays = {field.name: to_arrow(getattr(self, field.name), np.int64) for field in fields(self)}
        table = pa.table(arrays).replace_schema_metadata({_CAPACITY: str(row_length).encode()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        store.write_bytes(name, sink.getvalue().to_pybytes())

    @classmethod
    def read(cls, store: Store, name: str, row_length: int) -> Blocks | None:
        """Memory-map a file of `write`. None if it counts rows of another length. StoreError if it is damaged."""
        path = store.local_path(name)
        try:
            with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
                table = reader.read_all()
            if (table.schema.metadata or {}).get(_CAPACITY) != str(row_length).encode():
                return None
            columns = [list(map(to_numpy, table.column(field.name).chunks)) for field in fields(cls)]
            return cls.of_columns(
                [parts[0] if len(parts) == 1 else join(parts, np.int64) for parts in columns]
            )
        except (OSError, pa.ArrowException, KeyError) as error:
            raise cls.damaged(store, name, f"cannot be read: {error}") from None

    @staticmethod
    def damaged(store: Store, name: str, why: str) -> StoreError:
        return StoreError(
            f"{store.url_of(name)} {why}",
            hint=f"remove {store.url} and run the same command again: it prepares the tokens again",
        )


class BlockReader:
    """Reads the groups of a block. The columns are those of `Batches`; only slices of them are read."""

    def __init__(self, blocks: Blocks, lengths: Values, supervised: Values, positions: Values) -> None:
        self._blocks, self._lengths, self._supervised, self._positions = (
            blocks,
            lengths,
            supervised,
            positions,
        )

    def _span(self, block: int) -> slice:
        first = int(self._blocks.first[block])
        return slice(first, first + int(self._blocks.examples[block]))

    def groups(self, block: int) -> Groups:
        """The groups of a block, in the order of the store."""
        span = self._span(block)
        lengths = np.asarray(self._lengths[span], np.int64)
        starts = np.flatnonzero(self._positions[span] == 0)
        ends = np.append(starts[1:], len(lengths))
        return Groups(starts + span.start, ends + span.start, np.add.reduceat(lengths, starts))

    def targets(self, block: int) -> np.ndarray:
        """int64[groups]: supervised targets of each group of a block."""
        span = self._span(block)
        starts = np.flatnonzero(self._positions[span] == 0)
        return np.add.reduceat(np.asarray(self._supervised[span], np.int64), starts)


def measure(
    lengths: np.ndarray, supervised: np.ndarray, sources: np.ndarray, positions: np.ndarray, row_length: int
) -> Blocks:
    """The blocks of one shard, counted from its first example. All arrays are int[n], as in `Batches`."""
    starts = np.flatnonzero(positions == 0)  # [groups]
    edges = np.append(starts, len(lengths))
    targets = np.concatenate([[0], np.cumsum(supervised, dtype=np.int64)])
    tokens = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[edges]  # [groups + 1]
    sizes = np.diff(tokens)
    changes = np.flatnonzero(np.diff(sources[starts])) + 1
    cuts = _cuts(tokens, [*changes.tolist(), len(starts)], row_length)  # [blocks + 1] groups
    found = []
    for begin, end in itertools.pairwise(cuts):
        first, stop = int(edges[begin]), int(edges[end])
        found.append(
            (
                first,
                stop - first,
                end - begin,
                tokens[end] - tokens[begin],
                targets[stop] - targets[first],
                len(pack(np.arange(begin, end), sizes, row_length)),
                sizes[begin:end].max(),
                lengths[first:stop].max(),
                sources[first],
                0,
            )
        )
    return Blocks.of_columns(np.array(found, np.int64).reshape(-1, len(fields(Blocks))).T)


def _cuts(tokens: np.ndarray, stops: Sequence[int], row_length: int) -> list[int]:
    """The groups at which blocks begin, and the end. tokens: int64[groups + 1] before each; no block crosses a stop."""
    cuts, at = [0], 0
    for stop in stops:
        while at < stop:
            enough, most = np.searchsorted(
                tokens, tokens[at] + row_length * np.array([MIN_ROWS, MAX_ROWS]), side="right"
            )
            at = min(stop, max(at + 1, min(max(at + BLOCK, int(enough)), int(most) - 1)))
            cuts.append(at)
    return cuts
