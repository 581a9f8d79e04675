"""The rows and batches of one window: groups in a given order are packed, cut or sorted, as the recipe says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from tailor.data.packing import in_order, pack
from tailor.data.rows import Batch, Row, StreamSlice, join
from tailor.plan.batches import BatchSpec

PACK_WINDOW = 4096
"""Groups that are packed together. A larger window fills rows better; a smaller one reads the store more sequentially."""

GROUP_WINDOW = 64
"""Number of batches whose groups are sorted by length together when rows are not packed."""


@dataclass(frozen=True)
class Groups:
    """Some groups of a split. starts, ends: int[groups], its examples; sizes: int[groups], its tokens."""

    starts: np.ndarray
    ends: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)


class Arrangement:
    """Makes rows and batches of groups. An `order` is int[k], indices of groups; rows have the indices of examples."""

    def __init__(self, groups: Groups, lengths: np.ndarray, spec: BatchSpec) -> None:
        """lengths: int[n] tokens of each example of the split."""
        self._groups, self._lengths, self.spec = groups, lengths, spec
        self._singles = bool((groups.ends - groups.starts == 1).all())
        # A window may have as many groups as the split has examples, in another order.
        same_count = self._singles and len(groups) == len(lengths)
        self._are_all = same_count and bool((groups.starts == np.arange(len(groups))).all())

    def batches(self, order: np.ndarray, generator: np.random.Generator) -> list[Batch]:
        """All batches, shuffled by the generator."""
        if self.spec.order == "short_to_long":
            return self._short_to_long(order)
        if self.spec.join:
            return full_rows(self.joined(order, generator), self.spec)
        if self.spec.pack:
            return full_rows(self.packed(order, generator), self.spec)
        return self.grouped(order, generator)

    def packed(
        self, order: np.ndarray, generator: np.random.Generator, window: int = PACK_WINDOW
    ) -> list[Row]:
        """Packed rows. The rows of each `window` groups are shuffled."""
        rows: list[Row] = []
        for start in range(0, len(order), window):
            packed = self.pack(order[start : start + window])
            rows += [packed[index] for index in generator.permutation(len(packed))]
        return rows

    def joined(self, order: np.ndarray, generator: np.random.Generator) -> list[Row]:
        """Rows of joined examples. They are shuffled again, so that a long document is spread over many batches."""
        rows = join(self._examples(order), self._lengths, self.spec.max_length)
        return [rows[index] for index in generator.permutation(len(rows))]

    def pack(self, order: np.ndarray) -> list[Row]:
        return [self.row(row) for row in pack(order, self._groups.sizes, self.spec.max_length)]

    def row(self, groups: Sequence[int] | Row) -> Row:
        """The row that consists of the examples of these groups."""
        if self._are_all:
            return tuple(groups)
        starts, ends = self._bounds
        return tuple([example for group in groups for example in range(starts[group], ends[group])])

    @cached_property
    def _bounds(self) -> tuple[list[int], list[int]]:
        """`starts` and `ends` of the groups: reading numbers from arrays one by one would take most of the time of `row`."""
        return self._groups.starts.tolist(), self._groups.ends.tolist()

    def grouped(self, order: np.ndarray, generator: np.random.Generator) -> list[Batch]:
        """Batches of groups with similar lengths, which reduces padding."""
        size = self._row_count(order)
        window = len(order) if self.spec.window is not None else size * GROUP_WINDOW
        batches = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            if self.spec.window is None:
                part = part[np.argsort(-self._groups.sizes[part], kind="stable")]
            found = self._similar(part, size)
            batches += [found[index] for index in generator.permutation(len(found))]
        return batches

    def _examples(self, order: np.ndarray) -> np.ndarray:
        """int[n]: the examples of single-example groups."""
        return order if self._are_all else self._groups.starts[order]

    def _short_to_long(self, order: np.ndarray) -> list[Batch]:
        """Batches of growing length. Packed rows have groups that are neighbors in this order, and may be less full."""
        sizes = self._groups.sizes
        order = order[np.argsort(sizes[order], kind="stable")]  # equal lengths in a random order
        if self.spec.pack:
            rows = in_order(order, sizes, self.spec.max_length)
            return full_rows([self.row(row) for row in rows], self.spec)
        batches = self._similar(order, self._row_count(order))
        return sorted(batches, key=lambda batch: max(length_of(row, self._lengths) for row in batch))

    def _row_count(self, order: np.ndarray) -> int:
        """Rows of a batch of single groups; with `batch_tokens`, on average."""
        tokens = (self.spec.batch_tokens or 0) / max(1.0, float(self._groups.sizes[order].mean()))
        return self.spec.batch_size or max(1, round(tokens))

    def _similar(self, order: np.ndarray, size: int) -> list[Batch]:
        """Cut groups that are sorted by length into batches; with beacons, of the same number of windows."""
        if self.spec.window is not None:
            return self._by_windows(order, self.spec.window, size)
        return [
            [self.row((int(index),)) for index in cut] for cut in np.split(order, self._cuts(order, size))
        ]

    def _by_windows(self, order: np.ndarray, window: int, size: int) -> list[Batch]:
        """Batches of groups with the same number of windows of `window` tokens, as activation beacons need them.

        The remainders smaller than a batch are combined, the ones with the most windows first.
        """
        counts = -(-self._groups.sizes[order] // window)
        cuts: list[np.ndarray] = []
        remainders: list[np.ndarray] = []
        for count in np.unique(counts)[::-1]:
            part = order[counts == count]
            *full, last = np.split(part, self._cuts(part, size))
            cuts += full
            is_full = len(last) == size if self.spec.batch_size else False
            (cuts if is_full else remainders).append(last)
        if remainders:
            rest = np.concatenate(remainders)
            cuts += np.split(rest, self._cuts(rest, size))
        return [[self.row((int(index),)) for index in cut] for cut in cuts]

    def _cuts(self, part: np.ndarray, size: int) -> Sequence[int]:
        """Indices at which to split groups into batches: every `size` groups, or every `batch_tokens` tokens."""
        if self.spec.batch_size:
            return range(size, len(part), size)
        filled = (np.cumsum(self._groups.sizes[part]) - 1) // (self.spec.batch_tokens or 1)
        return [int(cut) for cut in np.flatnonzero(np.diff(filled)) + 1]


def rows_per_batch(spec: BatchSpec) -> int:
    """Rows of a batch whose rows have about `max_length` tokens each."""
    return spec.batch_size or max(1, (spec.batch_tokens or 0) // spec.max_length)


def full_rows(rows: Sequence[Row], spec: BatchSpec) -> list[Batch]:
    """Divide rows of about `max_length` tokens each into batches."""
    size = rows_per_batch(spec)
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def length_of(row: Row, lengths: np.ndarray) -> int:
    """Number of input tokens of a row, without padding."""
    return row.stop - row.start if isinstance(row, StreamSlice) else int(lengths[list(row)].sum())


def longest_first(batches: list[Batch], lengths: np.ndarray) -> None:
    """Move the batch that needs the most memory to the front, so that a run that does not fit fails in its first step."""
    counts = np.array([len(batch) for batch in batches])
    edges = np.cumsum(counts) - counts
    tokens, longest = row_sizes([row for batch in batches for row in batch], lengths)
    costs = counts * np.maximum.reduceat(tokens, edges)  # [batches] tokens with padding
    documents = np.maximum.reduceat(
        longest, edges
    )  # [batches]; the larger of equal costs is that with the longest document
    most = int(np.argmax(np.where(costs == costs.max(), documents, -1)))
    batches[0], batches[most] = batches[most], batches[0]


def row_sizes(rows: Sequence[Row], lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64[rows], twice: the input tokens of each row, and of its longest document. There is at least one row."""
    if any(isinstance(row, StreamSlice) for row in rows):
        sizes = np.array([length_of(row, lengths) for row in rows], np.int64)
        return sizes, sizes
    counts = np.array([len(row) for row in rows if isinstance(row, tuple)])
    examples = np.fromiter(chain.from_iterable(row for row in rows if isinstance(row, tuple)), np.int64)
    edges, found = np.cumsum(counts) - counts, np.asarray(lengths[examples], np.int64)
    return np.add.reduceat(found, edges), np.maximum.reduceat(found, edges)
