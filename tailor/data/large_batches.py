"""Batches of many examples: made window by window, from a table of blocks, so that time and memory do not grow with the data."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache

import numpy as np

from tailor.data.ahead import Ahead
from tailor.data.arrangement import Arrangement, full_rows, longest_first, row_sizes, rows_per_batch
from tailor.data.batches import Batches, empty_epoch
from tailor.data.blocks import BlockReader, Blocks, Values
from tailor.data.epoch_order import EpochOrder
from tailor.data.rows import Batch, Row
from tailor.plan.batches import BatchSpec

PACKED = 1 << 14
"""Groups that are packed together. In smaller splits it is `PACK_WINDOW`; these fill rows better than blocks do."""


class LargeBatches(Batches):
    """The same as `Batches`, where `epoch_order.is_large`. blocks: gives the table of the blocks, once.

    A window's batches follow from its groups, the seed and its number, as those of an epoch do in `Batches`.
    """

    lengths: Values  # type: ignore[assignment]
    supervised: Values  # type: ignore[assignment]
    sources: Values  # type: ignore[assignment]
    positions: Values  # type: ignore[assignment]

    def __init__(
        self,
        lengths: Values,
        supervised: Values,
        sources: Values,
        positions: Values,
        spec: BatchSpec,
        blocks: Callable[[], Blocks],
        fetch: Callable[[int], object] | None = None,
    ) -> None:
        """fetch: copies a shard of a remote store to this machine."""
        self.lengths, self.supervised, self.sources, self.positions = lengths, supervised, sources, positions
        self._make_blocks = blocks
        self._ahead = None if fetch is None else Ahead(fetch)
        self._begin(spec)
        self._order = lru_cache(maxsize=2)(self._make_order)
        self._window = lru_cache(maxsize=3)(self._make_window)

    @cached_property
    def _blocks(self) -> Blocks:
        return self._make_blocks()

    def _make_order(self, epoch: int) -> EpochOrder:
        reader = BlockReader(self._blocks, self.lengths, self.supervised, self.positions)
        return EpochOrder(self._blocks, reader, self.spec, epoch)

    def _make_epoch(self, epoch: int) -> Sequence[Batch]:
        return LargeEpoch(self._order(epoch), lambda number: self._window(epoch, number), self.spec)

    def _make_window(self, epoch: int, number: int) -> list[Row] | list[Batch]:
        """The rows of a window; where rows are single groups, its batches."""
        spec, of_epoch = self.spec, self._order(epoch)
        if self._ahead is not None:
            self._ahead.now(of_epoch.shards(number))
            if number + 1 < len(of_epoch):
                self._ahead.later(of_epoch.shards(number + 1))
        groups, edges, counts = of_epoch.window(number)
        arrangement = Arrangement(groups, self.lengths, spec)
        generator = np.random.default_rng([spec.seed, epoch, number + 1])
        order = generator.permutation(len(groups))
        is_first = epoch == number == 0
        if not (spec.pack or spec.join):
            batches = arrangement.grouped(order, generator)
            if is_first and batches:
                longest_first(batches, self.lengths)
            return batches
        if spec.join:
            rows = arrangement.joined(order, generator)
        else:
            rows = arrangement.packed(order, generator, PACKED)
            if len(rows) > counts.sum():  # possible, because best-fit packing of more groups may be worse
                parts = np.split(np.arange(len(groups)), edges[1:-1])
                rows = [row for part in parts for row in arrangement.pack(part)]
            rows = _spread(rows, int(counts.sum()), groups_of=lambda row: self._parts(row))
            rows = [rows[index] for index in generator.permutation(len(rows))]
        size = rows_per_batch(spec)
        if is_first and len(rows) >= size:
            whole = full_rows(rows[: len(rows) // size * size], spec)
            longest_first(whole, self.lengths)
            rows[: len(whole) * size] = [row for batch in whole for row in batch]
        return rows

    def _parts(self, row: Row) -> list[int]:
        """The indices in a row at which its groups begin."""
        return (
            [int(at) for at in np.flatnonzero(self.positions[list(row)] == 0)]
            if isinstance(row, tuple)
            else [0]
        )

    def steps_to(self, tokens: int) -> tuple[int, int]:
        if not self.epoch(0):
            raise empty_epoch()
        steps = epoch = total = 0
        while True:
            order, batches = self._order(epoch), self.epoch(epoch)
            if total + order.tokens < tokens:
                steps, total, epoch = steps + len(batches), total + order.tokens, epoch + 1
                continue
            index, before = self._begin_scan(epoch, tokens - total)
            steps, total = steps + index, total + before
            while total < tokens:
                steps, total, index = steps + 1, total + self.tokens(batches[index]), index + 1
            return steps, total

    def _begin_scan(self, epoch: int, tokens: int) -> tuple[int, int]:
        """(batch, total): a batch of an epoch before which there are `total` tokens, fewer than `tokens`; not far below."""
        order = self._order(epoch)
        number = bisect_left(range(1, len(order)), tokens, key=order.tokens_before)
        if not (self.spec.pack or self.spec.join):
            return int(order.batch_edges[number]), order.tokens_before(number)
        number = max(0, number - 1)  # the last batch that begins in a window may end in the next one
        batch = int(order.batch_edges[number])
        skipped = batch * rows_per_batch(self.spec) - int(order.row_edges[number])
        rows = self._window(epoch, number)[:skipped]
        if not number or len(rows) < skipped:
            return 0, 0
        before = int(order.token_edges[number])
        return batch, before + (int(row_sizes(rows, self.lengths)[0].sum()) if rows else 0)  # type: ignore[arg-type]

    def epoch_tokens(self) -> tuple[int, int]:
        order = self._order(0)
        return order.tokens, order.tokens if self.spec.join else int(order.entries.supervised.sum())

    def longest(self) -> int:
        if self.spec.join:
            return min(self.spec.max_length, int(np.diff(self._order(0).token_edges).max(initial=0)))
        return int(self._blocks.longest_example.max(initial=0))

    def max_rows(self) -> int:
        return self._order(0).max_rows()

    def source_tokens(self, sources: int) -> tuple[int, ...]:
        return self._order(0).source_tokens(sources)

    def longest_row(self, evaluation: bool = False) -> int:
        """An upper bound: among this many groups, some fill a row."""
        longest = int(self._blocks.longest.max(initial=0))
        if self.spec.join:
            return self.spec.max_length
        return max(longest, self.spec.max_length) if self.spec.pack else longest


class LargeEpoch(Sequence[Batch]):
    """The batches of an epoch. An index makes the windows that its batch needs; the length needs none."""

    def __init__(
        self, order: EpochOrder, window: Callable[[int], list[Row] | list[Batch]], spec: BatchSpec
    ) -> None:
        self._order, self._window, self._spec = order, window, spec

    def __len__(self) -> int:
        return int(self._order.batch_edges[-1])

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        index %= len(self)
        if not (self._spec.pack or self._spec.join):
            number = int(np.searchsorted(self._order.batch_edges, index, side="right")) - 1
            batch: Batch = self._window(number)[index - int(self._order.batch_edges[number])]  # type: ignore[assignment]
            return batch
        size = rows_per_batch(self._spec)
        return list(self._rows(index * size, min((index + 1) * size, int(self._order.row_edges[-1]))))

    def _rows(self, start: int, stop: int) -> Iterator[Row]:
        edges = self._order.row_edges
        number = int(np.searchsorted(edges, start, side="right")) - 1
        while start < stop:
            begin, end = int(edges[number]), min(stop, int(edges[number + 1]))
            yield from self._window(number)[start - begin : end - begin]  # type: ignore[misc]
            start, number = max(start, end), number + 1


def _spread(rows: list[Row], count: int, groups_of: Callable[[Row], list[int]]) -> list[Row]:
    """Split the rows of the most examples until there are `count`: the number that follows from the table of blocks.

    groups_of: the indices in a row at which a group begins. A group is not split.
    """
    if len(rows) >= count:
        return rows
    heap = [(-len(row), at) for at, row in enumerate(rows) if isinstance(row, tuple)]
    heapq.heapify(heap)
    rows = list(rows)
    while len(rows) < count:
        _, at = heapq.heappop(heap)
        row = rows[at]
        assert isinstance(row, tuple)
        starts = groups_of(row)
        if len(starts) < 2:
            continue
        half = starts[len(starts) // 2]
        rows[at] = row[:half]
        rows.append(row[half:])
        heapq.heappush(heap, (-half, at))
        heapq.heappush(heap, (half - len(row), len(rows) - 1))
    return rows
