"""The order of an epoch of a large split: a shuffled list of its blocks, cut into windows.

The list is a function of the table of blocks, the seed and the epoch. From its sums follow the number of steps, the batches of
each window and the tokens of each source, so no window has to be made for them. It takes a few bytes per block.

Each source's shards are shuffled and spread evenly over the epoch, and each block is moved back by a random part of `SPREAD`
shards. So a window has blocks of many shards and of all sources, in the proportions of the mixture, and the windows of a
while need the same few shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np

from tailor.data import mixing
from tailor.data.arrangement import GROUP_WINDOW, Groups, rows_per_batch
from tailor.data.blocks import BlockReader, Blocks
from tailor.data.packing import pack
from tailor.plan.batches import BatchSpec

WINDOW = 1 << 17
"""Groups (or rows, if they are more) that are batched together. Splits of fewer examples are one window."""
ORDER_VERSION = 2
"""Version of the batches of large splits. Version 1 was a list of the epoch, which smaller splits still have."""
SPREAD = 256
"""Shards' worth of groups over which a shard's blocks are spread. An epoch of fewer groups is shuffled over all its blocks."""
MIN_DRAWN = 256
"""A part of a source is drawn from at least this many of its blocks: neighbors in a file are often alike."""
MAX_BLOCKS = 10**7
"""Largest number of blocks that an epoch may draw from one source because of its weight: their order is kept in memory."""


@dataclass(frozen=True)
class Entries:
    """Blocks that an epoch takes; all arrays are int64[entries]. copy: how often the epoch has taken the block before.

    groups, tokens, supervised, rows, longest: of the groups taken, as in `Blocks`.
    """

    block: np.ndarray
    copy: np.ndarray
    groups: np.ndarray
    tokens: np.ndarray
    supervised: np.ndarray
    rows: np.ndarray
    longest: np.ndarray

    def __getitem__(self, index: np.ndarray) -> Entries:
        return Entries(*(column[index] for column in self._columns()))

    def _columns(self) -> list[np.ndarray]:
        return [getattr(self, field.name) for field in fields(self)]

    @classmethod
    def join(cls, parts: Iterable[Entries]) -> Entries:
        return cls(
            *(np.concatenate(columns) for columns in zip(*(part._columns() for part in parts), strict=True))
        )


class EpochOrder:
    """The windows of an epoch."""

    def __init__(self, blocks: Blocks, reader: BlockReader, spec: BatchSpec, epoch: int) -> None:
        self._blocks, self._reader, self._spec, self._epoch = blocks, reader, spec, epoch
        generator = np.random.default_rng([spec.seed, epoch])
        parts, positions = zip(*self._sources(generator), strict=True)
        entries = Entries.join(parts)
        position, jitter = np.concatenate(positions), generator.random(len(entries.block))
        shard_groups = blocks.groups.sum() / (blocks.shard.max() + 1)
        spread = max(WINDOW, SPREAD * shard_groups) / entries.groups.sum()
        order = np.argsort(jitter if spread >= 1 else position + jitter * spread, kind="stable")
        if epoch == 0 and len(order):  # a run that does not fit fails in its first step
            first = int(np.argmax(entries.longest[order]))
            order[[0, first]] = order[[first, 0]]
        self.entries = entries[order]
        self._ends = np.cumsum(self.entries.groups)
        """int64[entries]: the groups up to the end of each entry."""
        self._cut()

    def _sources(self, generator: np.random.Generator) -> Iterator[tuple[Entries, np.ndarray]]:
        """The entries of each copy of each source, and their positions: float[entries], from 0 to 1 within the epoch."""
        blocks, spec = self._blocks, self._spec
        sources = int(blocks.source.max(initial=0)) + 1
        numbers = mixing.passes(blocks.source, blocks.tokens, spec) or [1.0] * sources
        for source, number in enumerate(numbers):
            members = np.flatnonzero(blocks.source == source)
            if not len(members):
                continue
            if spec.samples and spec.samples[source]:
                need = float(min(spec.samples[source], blocks.groups[members].sum()))
                part = self._part(members[generator.permutation(len(members))], 0, need, by_tokens=False)
                yield part, self._positions(part, generator)
                continue
            if number > 1 and number * len(members) > MAX_BLOCKS:
                groups = int(blocks.groups[members].sum())
                raise mixing.too_many(source, number, groups, limit=MAX_BLOCKS * groups // len(members))
            whole = int(number)
            if whole:
                part = self._whole(np.tile(members, whole), np.repeat(np.arange(whole), len(members)))
                yield part, self._positions(part, generator) * (whole / number)
            by_tokens = spec.weight_by == "tokens"
            owned = blocks.tokens if by_tokens else blocks.groups
            need = (number - whole) * float(owned[members].sum())
            need = need if by_tokens else round(need)
            if number < 1 or need:
                shuffled = members[generator.permutation(len(members))]
                part = self._part(shuffled, whole, need, by_tokens=by_tokens)
                if len(part.block):
                    yield part, (whole + (number - whole) * self._positions(part, generator)) / number

    def _positions(self, part: Entries, generator: np.random.Generator) -> np.ndarray:
        """float[entries], from 0 to 1: one copy of a source after the other, each with its shards shuffled."""
        copy = part.copy - part.copy[0]
        shards, shard = np.unique(self._blocks.shard[part.block], return_inverse=True)
        keys = generator.random((int(copy[-1]) + 1, len(shards)))[copy, shard]
        order = np.lexsort((generator.random(len(shard)), keys, copy))
        groups = part.groups[order]
        positions = np.zeros(len(order))
        positions[order] = (np.cumsum(groups) - groups) / groups.sum()
        return positions

    def _whole(self, members: np.ndarray, copy: np.ndarray | int) -> Entries:
        blocks = self._blocks
        sums = (blocks.groups, blocks.tokens, blocks.supervised, blocks.rows, blocks.longest)
        return Entries(members, np.full(len(members), copy), *(column[members] for column in sums))

    def _part(self, shuffled: np.ndarray, copy: int, need: float, *, by_tokens: bool) -> Entries:
        """A random part of a source with `need` groups or tokens: whole blocks and one part, or parts of `MIN_DRAWN` blocks.

        At least one group if the epoch has nothing else of the source.
        """
        owned = (self._blocks.tokens if by_tokens else self._blocks.groups)[shuffled]
        before = np.cumsum(owned) - owned
        whole = int(np.searchsorted(before + owned, need, side="right"))
        if whole >= min(MIN_DRAWN, len(shuffled)):
            shares = need - before[whole : whole + 1]  # of the next block
            partial = shuffled[whole : whole + 1]
        else:
            whole, partial = 0, shuffled[:MIN_DRAWN]
            ends = np.cumsum(owned[: len(partial)])
            shares = np.diff(need * ends / ends[-1], prepend=0.0)
        parts = [self._whole(shuffled[:whole], copy)]
        given = wanted = 0.0
        for block, share in zip(partial.tolist(), shares.tolist(), strict=True):
            wanted += share
            part = self._taken(block, copy, wanted - given, by_tokens=by_tokens)
            given += float((part.tokens if by_tokens else part.groups).sum())
            parts.append(part)
        if not copy and not any(part.groups.sum() for part in parts):
            parts.append(self._taken(int(shuffled[0]), copy, 1.0, by_tokens=False))
        found = Entries.join(parts)
        return found[found.groups > 0]

    def _taken(self, block: int, copy: int, need: float, *, by_tokens: bool) -> Entries:
        """The first groups of a shuffled block that have most nearly `need` tokens, or are `need` groups."""
        groups, targets = self._reader.groups(block), self._reader.targets(block)
        order = self.shuffled(block, copy, len(groups))
        sizes = groups.sizes[order]
        count = mixing.nearest(sizes, need) if by_tokens else min(len(order), round(need))
        taken, sizes = order[:count], sizes[:count]
        rows = len(pack(np.arange(count), sizes, self._spec.max_length)) if self._spec.pack else 0
        values = (block, copy, count, sizes.sum(), targets[taken].sum(), rows, sizes.max(initial=0))
        return Entries(*(np.array([value], np.int64) for value in values))

    def shuffled(self, block: int, copy: int, groups: int) -> np.ndarray:
        """int[groups]: the order in which an entry takes the groups of its block."""
        return np.random.default_rng([self._spec.seed, self._epoch, copy + 1, block + 1]).permutation(groups)

    def _cut(self) -> None:
        """Cut the list into windows. With rows, a batch may have rows of two windows; else windows end with a batch."""
        entries, spec = self.entries, self._spec
        ends = np.concatenate([[0], self._ends])
        if not (spec.pack or spec.join):
            assert spec.batch_size is not None
            size = spec.batch_size * GROUP_WINDOW
            size *= max(1, WINDOW // size)
            self.group_edges = np.append(np.arange(0, ends[-1], size), ends[-1])
            """int[windows + 1]: the groups before each window."""
            counts = -(-np.diff(self.group_edges) // spec.batch_size)
            self.batch_edges = np.concatenate([[0], np.cumsum(counts)])
            """int[windows + 1]: the batches before each window; of rows, the batches are cut from all of them."""
            return
        per_entry = -(-entries.tokens // spec.max_length) if spec.join else entries.rows
        before = np.cumsum(np.maximum(entries.groups, per_entry))
        windows = max(1, -(-int(before[-1]) // WINDOW))
        cuts = np.searchsorted(before, np.arange(1, windows) * (before[-1] / windows), side="left") + 1
        cuts = np.unique([0, *np.minimum(cuts, len(entries.groups)), len(entries.groups)])
        self.group_edges = ends[cuts]
        tokens = np.diff(np.concatenate([[0], np.cumsum(entries.tokens)])[cuts])
        rows = -(-np.maximum(0, tokens - 1) // spec.max_length)
        if spec.pack:
            rows = np.diff(np.concatenate([[0], np.cumsum(entries.rows)])[cuts])
        self.row_edges = np.concatenate([[0], np.cumsum(rows)])
        """int[windows + 1]: the rows before each window."""
        self.token_edges = np.concatenate([[0], np.cumsum(tokens - 1 if spec.join else tokens)])
        """int[windows + 1]: the input tokens before each window."""
        self.batch_edges = -(-self.row_edges // rows_per_batch(spec))

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.group_edges) - 1

    def _span(self, number: int) -> tuple[int, int]:
        """(first, stop) of the entries of which a window has groups."""
        begin, end = (int(edge) for edge in self.group_edges[number : number + 2])
        first, last = np.searchsorted(self._ends, [begin, end - 1], side="right")
        return int(first), int(last) + 1

    def shards(self, number: int) -> list[int]:
        """The shards that a window needs, in the order of their first use."""
        blocks = self.entries.block[slice(*self._span(number))]
        return list(dict.fromkeys(self._blocks.shard[blocks].tolist()))

    def window(self, number: int) -> tuple[Groups, np.ndarray, np.ndarray]:
        """(groups, edges, rows): the groups of a window; int[entries + 1], those before each entry; int[entries], its rows."""
        begin, end = (int(edge) for edge in self.group_edges[number : number + 2])
        first, stop = self._span(number)
        parts: list[Groups] = []
        for entry in range(first, stop):
            block, copy, taken = (
                int(column[entry]) for column in (self.entries.block, self.entries.copy, self.entries.groups)
            )
            groups = self._reader.groups(block)
            before = int(self._ends[entry]) - taken
            low, high = max(0, begin - before), min(taken, end - before)
            if high - low < len(groups):
                some = self.shuffled(block, copy, len(groups))[low:high]
                groups = Groups(groups.starts[some], groups.ends[some], groups.sizes[some])
            parts.append(groups)
        edges = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        names = ("starts", "ends", "sizes")
        joined = Groups(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
        return joined, edges, self.entries.rows[first:stop]

    def max_rows(self) -> int:
        """Rows of the largest batch."""
        if self._spec.pack or self._spec.join:
            return min(rows_per_batch(self._spec), int(self.row_edges[-1]))
        assert self._spec.batch_size is not None
        return min(self._spec.batch_size, int(np.diff(self.group_edges).max()))

    @property
    def tokens(self) -> int:
        """Input tokens of all batches."""
        return int(self.token_edges[-1] if self._spec.join else self.entries.tokens.sum())

    def tokens_before(self, number: int) -> int:
        """Input tokens of the windows before this one. Reads one block at most."""
        if self._spec.pack or self._spec.join:
            return int(self.token_edges[number])
        entries, edge = self.entries, int(self.group_edges[number])
        entry = int(np.searchsorted(self._ends, edge, side="right"))
        total = int(entries.tokens[:entry].sum())
        if count := edge - int(self._ends[entry - 1] if entry else 0):
            block, copy = int(entries.block[entry]), int(entries.copy[entry])
            sizes = self._reader.groups(block).sizes
            total += int(sizes[self.shuffled(block, copy, len(sizes))[:count]].sum())
        return total

    def source_tokens(self, sources: int) -> tuple[int, ...]:
        """Tokens that the epoch has of each of `sources` sources."""
        source = self._blocks.source[self.entries.block]
        found = np.bincount(source, weights=self.entries.tokens, minlength=sources)
        return tuple(int(tokens) for tokens in found)


def order_version(examples: int, spec: BatchSpec) -> int:
    """The version of the order of a training split's batches. A run is not resumed with another one."""
    return ORDER_VERSION if is_large(examples, spec) else 1


def is_large(examples: int, spec: BatchSpec) -> bool:
    """Whether the batches of a split are made window by window.

    Not those that have an order over the whole epoch, and of unpacked batches only those of as many groups each: where a
    batch has a number of tokens, their number depends on the groups that meet.
    """
    whole = spec.order == "short_to_long" or spec.streams is not None or spec.ranked is not None
    return examples > WINDOW and not whole and (spec.pack or spec.join or spec.batch_size is not None)
