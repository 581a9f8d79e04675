"""The global batch of a step: a pure function of the examples' lengths, the seed and the step.

Nothing here depends on the number of workers, so resume needs no iterator state and one worker
sees the same batches as sixteen. Words:

    example      one token example of the store
    group        examples that belong together, such as the two answers of a pair; mostly one example
    row          what goes through the model together: a pack of groups, one group, or a stretch of
                 joined examples
    batch        the rows of one optimizer step, over all workers
    micro-batch  the rows of one forward pass of one worker
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from tailor.data.rows import Batch, Row, Stretch, join
from tailor.plan.batches import BatchSpec

PACK_WINDOW = 4096
"""Examples considered together when packing: larger fills rows better, smaller reads more in order."""

GROUP_WINDOW = 64
"""Batches whose examples are sorted by length together when rows are not packed."""


class Batches:
    """The batches of a run.

    lengths: int[n] tokens of each example; supervised: int[n] supervised targets of each example;
    sources: int[n] index of each example's source; positions: int[n] position of each example in its group,
    by default 0 for all. A group is never divided: it lies in one row of one batch.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        supervised: np.ndarray,
        sources: np.ndarray,
        spec: BatchSpec,
        positions: np.ndarray | None = None,
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.supervised = np.asarray(supervised, dtype=np.int64)
        self.sources = np.asarray(sources)
        self.positions = np.zeros(len(self.lengths), np.int16) if positions is None else np.asarray(positions)
        self._starts = np.flatnonzero(self.positions == 0)
        """First example of each group."""
        self._ends = np.append(self._starts[1:], len(self.lengths))
        whole = np.concatenate([[0], np.cumsum(self.lengths)])
        self._sizes = whole[self._ends] - whole[self._starts]
        """Tokens of each group."""
        self.spec = spec
        self._first_step = [spec.first_step]  # first step of each epoch seen so far
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._lock = threading.Lock()  # the reading thread runs ahead of the training one

    def epoch(self, epoch: int) -> list[Batch]:
        """All batches of one epoch, in order. Every drawn example is in exactly one of them."""
        return self._epoch(epoch)

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over the whole run."""
        epoch = self.epoch_of(step)
        return self.epoch(epoch)[step - self._first_step[epoch]]

    def epoch_of(self, step: int) -> int:
        """The epoch, counted from 0, in which a step lies."""
        with self._lock:
            while self._first_step[-1] <= step:
                last = len(self._first_step) - 1
                self._first_step.append(self._first_step[-1] + len(self.epoch(last)))
        return int(np.searchsorted(self._first_step, step, side="right")) - 1

    def progress(self, step: int) -> float:
        """Epochs done after `step` steps, as a fraction."""
        if step <= self.spec.first_step:
            return 0.0
        epoch = self.epoch_of(step - 1)
        return epoch + (step - self._first_step[epoch]) / len(self.epoch(epoch))

    def steps(self, epochs: float) -> int:
        """Optimizer steps of so many epochs, at least one."""
        whole = int(epochs)
        total = sum(len(self.epoch(epoch)) for epoch in range(whole))
        if epochs > whole:
            total += round((epochs - whole) * len(self.epoch(whole)))
        return max(1, total)

    def steps_to(self, tokens: int) -> tuple[int, int]:
        """The fewest optimizer steps whose batches together have so many tokens, and how many these have."""
        steps = epoch = read = 0
        while True:
            for batch in self.epoch(epoch):
                steps, read = steps + 1, read + self.tokens(batch)
                if read >= tokens:
                    return steps, read
            epoch += 1

    def supervised_tokens(self, batch: Batch) -> int:
        """Supervised targets of a batch: what its loss is divided by."""
        return sum(self._targets(row) for row in batch)

    def groups(self, batch: Batch) -> int:
        """Groups of a batch: its examples, or its pairs."""
        return int(sum((self.positions[list(row)] == 0).sum() for row in batch))

    def evaluation(self) -> list[Batch]:
        """Batches that show every group once, whose losses are taken one after another. Here one holds everything."""
        return [self.rows()]

    def rows(self) -> list[Row]:
        """Every group once, in the order of the store: for evaluation."""
        order = np.arange(len(self._starts))
        if self.spec.join:
            return list(join(order, self.lengths, self.spec.max_length))
        packed = self._pack(order) if self.spec.pack else [(int(group),) for group in order]
        return [self._examples(row) for row in packed]

    def longest_row(self) -> int:
        """Most tokens that a row can have."""
        if self.spec.join:
            return self.spec.max_length
        longest = int(self._sizes.max(initial=0))
        return max(self.spec.max_length, longest) if self.spec.pack else longest

    def tokens(self, batch: Batch) -> int:
        """Tokens of a batch that the model reads, without padding."""
        return sum(self.length(row) for row in batch)

    def length(self, row: Row) -> int:
        """Tokens of a row that the model reads, without padding."""
        return row.stop - row.start if isinstance(row, Stretch) else int(self.lengths[list(row)].sum())

    def _targets(self, row: Row) -> int:
        # Everything is supervised in a stream, and every token that is read predicts one.
        return row.stop - row.start if isinstance(row, Stretch) else int(self.supervised[list(row)].sum())

    def _make_epoch(self, epoch: int) -> list[Batch]:
        generator = np.random.default_rng([self.spec.seed, epoch])
        order = self._draw(generator)
        order = order[generator.permutation(len(order))]
        if self.spec.join:
            batches = self._joined(order, generator)
        else:
            batches = self._packed(order, generator) if self.spec.pack else self._grouped(order, generator)
        if epoch == 0:
            self._longest_first(batches)
        return batches

    def _draw(self, generator: np.random.Generator) -> np.ndarray:
        """Groups of one epoch: a source of weight 2.5 is shown twice, and half of it a third time."""
        if not self.spec.weights:
            return np.arange(len(self._starts))
        drawn = [np.zeros(0, dtype=np.int64)]
        for source, weight in enumerate(self.spec.weights):
            members = np.flatnonzero(self.sources[self._starts] == source)
            drawn += [members] * int(weight)
            extra = round((weight - int(weight)) * len(members))
            if extra:
                drawn.append(generator.choice(members, size=extra, replace=False))
        return np.concatenate(drawn)

    def _packed(self, order: np.ndarray, generator: np.random.Generator) -> list[Batch]:
        rows: list[Row] = []
        for start in range(0, len(order), PACK_WINDOW):
            packed = self._pack(order[start : start + PACK_WINDOW])
            rows += [self._examples(packed[index]) for index in generator.permutation(len(packed))]
        return self._full_rows(rows)

    def _joined(self, order: np.ndarray, generator: np.random.Generator) -> list[Batch]:
        """The rows are shuffled too, so that those of a long document stand in many batches."""
        rows = join(order, self.lengths, self.spec.max_length)
        return self._full_rows([rows[index] for index in generator.permutation(len(rows))])

    def _full_rows(self, rows: Sequence[Row]) -> list[Batch]:
        """Batches of rows that are about `max_length` long."""
        size = self.spec.batch_size or max(1, (self.spec.batch_tokens or 0) // self.spec.max_length)
        return [list(rows[start : start + size]) for start in range(0, len(rows), size)]

    def _grouped(self, order: np.ndarray, generator: np.random.Generator) -> list[Batch]:
        """Groups of like length share a batch, so that little of it is padding."""
        size = self.spec.batch_size or max(
            1, round((self.spec.batch_tokens or 0) / max(1.0, float(self._sizes[order].mean())))
        )
        if self.spec.window is not None:
            made = self._of_like_windows(order, self.spec.window, size)
            return [made[index] for index in generator.permutation(len(made))]
        batches: list[Batch] = []
        window = size * GROUP_WINDOW
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[np.argsort(-self._sizes[part], kind="stable")]
            cuts = self._cuts(part, size)
            made = [[self._examples((int(index),)) for index in cut] for cut in np.split(part, cuts)]
            batches += [made[index] for index in generator.permutation(len(made))]
        return batches

    def _of_like_windows(self, order: np.ndarray, window: int, size: int) -> list[Batch]:
        """What is left of each number of windows, less than a batch, comes together in the order of these numbers."""
        counts = -(-self._sizes[order] // window)
        cuts: list[np.ndarray] = []
        left: list[np.ndarray] = []
        for count in np.unique(counts)[::-1]:
            part = order[counts == count]
            *full, last = np.split(part, self._cuts(part, size))
            cuts += full
            whole = len(last) == size if self.spec.batch_size else False
            (cuts if whole else left).append(last)
        if left:
            rest = np.concatenate(left)
            cuts += np.split(rest, self._cuts(rest, size))
        return [[self._examples((int(index),)) for index in cut] for cut in cuts]

    def _pack(self, groups: np.ndarray) -> list[Row]:
        return pack(groups, self._sizes, self.spec.max_length)

    def _examples(self, groups: Sequence[int]) -> Row:
        """The examples of some groups."""
        if len(self._starts) == len(self.lengths):
            return tuple(groups)
        return tuple(example for group in groups for example in range(self._starts[group], self._ends[group]))

    def _cuts(self, part: np.ndarray, size: int) -> Sequence[int]:
        if self.spec.batch_size:
            return range(size, len(part), size)
        filled = (np.cumsum(self._sizes[part]) - 1) // (self.spec.batch_tokens or 1)
        return [int(cut) for cut in np.flatnonzero(np.diff(filled)) + 1]

    def _longest_first(self, batches: list[Batch]) -> None:
        """The first step takes the most memory of all, so a run that cannot fit fails at once."""

        def cost(batch: Batch) -> tuple[int, int]:
            longest = max(self.length(row) for row in batch)
            return len(batch) * longest, max(self._longest_document(row) for row in batch)

        longest = max(range(len(batches)), key=lambda index: cost(batches[index]))
        batches[0], batches[longest] = batches[longest], batches[0]

    def _longest_document(self, row: Row) -> int:
        return self.length(row) if isinstance(row, Stretch) else int(self.lengths[list(row)].max())


def pack(examples: np.ndarray, lengths: np.ndarray, capacity: int) -> list[Row]:
    """Best-fit decreasing: the longest example goes first, into the fullest row that still has room.

    examples: int[k] indices; lengths: int[n]; returns rows whose lengths sum to at most `capacity`. An
    example that is longer (a pair may be) gets a row of its own.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for example in examples[np.argsort(-lengths[examples], kind="stable")]:
        length = int(lengths[example])
        place = bisect_left(room, (length, -1))
        if place == len(room):
            rows.append([int(example)])
            free, row = capacity - length, len(rows) - 1
        else:
            free, row = room.pop(place)
            rows[row].append(int(example))
            free -= length
        insort(room, (free, row))
    return [tuple(row) for row in rows]


def micro_batches(batch: Batch, size: int) -> list[Batch]:
    """Cut a batch into micro-batches of `size` rows. The cut doesn't depend on the number of workers."""
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def share(batch: Batch, size: int, rank: int, world: int) -> list[tuple[int, Batch]]:
    """This worker's micro-batches, each with its global number. Every worker gets equally many.

    Where the batch doesn't divide, the last ones are empty: their worker still takes part in the sum.
    """
    all_of_them = micro_batches(batch, size)
    rounds = -(-len(all_of_them) // world)
    numbers = range(rank, rounds * world, world)
    return [(number, all_of_them[number] if number < len(all_of_them) else []) for number in numbers]
