"""The global batch of a step: a pure function of the example lengths, the seed and the step.

Batches do not depend on the number of workers. Resuming therefore needs no iterator state, and a run on one worker
has the same batches as a run on sixteen. Terms:

    example      one example of the token store
    group        examples that belong together, such as the two answers of a pair; usually one example
    row          one row of a batch: a pack of groups, one group, or a slice of joined examples
    batch        the rows of one optimizer step, over all workers
    micro-batch  the rows of one forward pass of one worker
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np

from tailor.data import mixing
from tailor.data.arrangement import Arrangement, Groups, length_of, longest_first
from tailor.data.packing import largest_sum
from tailor.data.rows import Batch, Row, StreamSlice, join
from tailor.errors import DataError
from tailor.plan.batches import BatchSpec


class Batches:
    """The batches of a run, where a list holds those of an epoch. See `LargeBatches` for those of many examples.

    lengths: int[n] tokens of each example; supervised: int[n] supervised targets of each example;
    sources: int[n] index of each example's source; positions: int[n] position of each example in its group,
    by default 0 for all. A group is never split: all its examples are in one row of one batch.
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
        self._begin(spec)

    def _begin(self, spec: BatchSpec) -> None:
        self.spec = spec
        self._first_step = [spec.first_step]  # first step of each epoch computed so far
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._lock = threading.Lock()  # the prefetch thread is ahead of the training thread

    @cached_property
    def _groups(self) -> Groups:
        starts = np.flatnonzero(np.asarray(self.positions) == 0)
        ends = np.append(starts[1:], len(self.lengths))
        offsets = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        return Groups(starts, ends, offsets[ends] - offsets[starts])

    @cached_property
    def _group_sources(self) -> np.ndarray:
        """int[groups]: index of each group's source."""
        return np.asarray(self.sources)[self._groups.starts].astype(np.int64)

    @property
    def _starts(self) -> np.ndarray:
        """int[groups]: first example of each group."""
        return self._groups.starts

    @property
    def _ends(self) -> np.ndarray:
        return self._groups.ends

    @property
    def _sizes(self) -> np.ndarray:
        """int[groups]: tokens of each group."""
        return self._groups.sizes

    @cached_property
    def _arrangement(self) -> Arrangement:
        return Arrangement(self._groups, self.lengths, self.spec)

    def epoch(self, epoch: int) -> Sequence[Batch]:
        """All batches of an epoch, in order. Each example drawn for the epoch is in exactly one of them."""
        return self._epoch(epoch)

    def batch(self, step: int) -> Batch:
        """The batch of a step. Steps count from 0 over the whole run."""
        epoch = self.epoch_of(step)
        return self.epoch(epoch)[step - self._first_step[epoch]]

    def epoch_of(self, step: int) -> int:
        """The epoch of a step. Both count from 0."""
        with self._lock:
            while self._first_step[-1] <= step:
                last = len(self._first_step) - 1
                self._first_step.append(self._first_step[-1] + len(self.epoch(last)))
        return int(np.searchsorted(self._first_step, step, side="right")) - 1

    def progress(self, step: int) -> float:
        """Number of epochs completed after `step` steps, as a float."""
        if step <= self.spec.first_step:
            return 0.0
        epoch = self.epoch_of(step - 1)
        return epoch + (step - self._first_step[epoch]) / len(self.epoch(epoch))

    def steps(self, epochs: float) -> int:
        """Number of optimizer steps of `epochs` epochs, at least 1."""
        whole = int(epochs)
        total = sum(len(self.epoch(epoch)) for epoch in range(whole))
        if epochs > whole:
            total += round((epochs - whole) * len(self.epoch(whole)))
        return max(1, total)

    def steps_to(self, tokens: int) -> tuple[int, int]:
        """(steps, total): the fewest optimizer steps whose batches have at least `tokens` tokens, and their exact number.

        DataError when an epoch has no row.
        """
        if not self.epoch(0):
            raise empty_epoch()
        steps = epoch = total = 0
        while True:
            for batch in self.epoch(epoch):
                steps, total = steps + 1, total + self.tokens(batch)
                if total >= tokens:
                    return steps, total
            epoch += 1

    def epoch_tokens(self) -> tuple[int, int]:
        """(tokens, supervised targets) of the first epoch."""
        epoch = self.epoch(0)
        return sum(map(self.tokens, epoch)), sum(map(self.supervised_tokens, epoch))

    def longest(self) -> int:
        """Tokens of the longest example; with `join`, of the longest row of the first epoch."""
        if self.spec.join:
            return max((self.length(row) for batch in self.epoch(0) for row in batch), default=0)
        return int(self.lengths.max(initial=0))

    def max_rows(self) -> int:
        """Rows of the largest batch of the first epoch."""
        return max(map(len, self.epoch(0)), default=0)

    def source_tokens(self, sources: int) -> tuple[int, ...]:
        """Tokens that the first epoch draws from each of `sources` sources."""
        order = self._draw(np.random.default_rng([self.spec.seed, 0]))
        found = np.bincount(self._group_sources[order], weights=self._sizes[order], minlength=sources)
        return tuple(int(tokens) for tokens in found)

    def supervised_tokens(self, batch: Batch) -> int:
        """Number of supervised targets of a batch, the denominator of its loss."""
        return sum(self._targets(row) for row in batch)

    def groups(self, batch: Batch) -> int:
        """Number of groups in a batch, such as its examples or its pairs."""
        return int(sum((self.positions[list(row)] == 0).sum() for row in batch))

    def evaluation(self) -> list[Batch]:
        """Batches that together contain every group once, for evaluation. Here a single batch contains everything."""
        return [self.rows()]

    def rows(self) -> list[Row]:
        """Rows that together contain every group once, in the order of the store, for evaluation."""
        order = np.arange(len(self._starts))
        if self.spec.join:
            return list(join(order, self.lengths, self.spec.max_length))
        if self.spec.pack:
            return self._arrangement.pack(order)
        return [self._arrangement.row((int(group),)) for group in order]

    def longest_row(self, evaluation: bool = False) -> int:
        """Maximum number of tokens in a row of any epoch, or of the rows of `rows` for evaluation.

        The sources of a low weight are included: which of their groups an epoch draws is random.
        """
        spec = self.spec
        longest = int(self._sizes.max(initial=0))
        if not (spec.join or spec.pack):
            return longest
        copies = np.ones(len(self._starts), np.int64)  # [groups]: how often an epoch has each group at most
        if not evaluation:
            copies = mixing.max_copies(self._group_sources, self._sizes, spec)
        if spec.join:
            return max(0, min(spec.max_length, int((self._sizes * copies).sum()) - 1))
        return max(longest, largest_sum(self._sizes, copies, spec.max_length))

    def tokens(self, batch: Batch) -> int:
        """Number of input tokens of a batch, without padding."""
        return sum(self.length(row) for row in batch)

    def length(self, row: Row) -> int:
        """Number of input tokens of a row, without padding."""
        return length_of(row, self.lengths)

    def _targets(self, row: Row) -> int:
        # In a stream all tokens are supervised: each input token predicts its successor.
        return row.stop - row.start if isinstance(row, StreamSlice) else int(self.supervised[list(row)].sum())

    def _make_epoch(self, epoch: int) -> Sequence[Batch]:
        generator = np.random.default_rng([self.spec.seed, epoch])
        order = self._draw(generator)
        order = order[generator.permutation(len(order))]
        if not len(order):
            return []
        batches = self._arrangement.batches(order, generator)
        if epoch == 0 and batches and self.spec.order == "shuffled":
            longest_first(batches, self.lengths)
        return batches

    def _draw(self, generator: np.random.Generator) -> np.ndarray:
        """int[k]: the groups of an epoch, in the order of the store."""
        return mixing.draw(self._group_sources, self._sizes, self.spec, generator)


def empty_epoch() -> DataError:
    """The error of data without a row to train on."""
    return DataError(
        "an epoch has no training example",
        hint="add rows, or see in `tailor data report` why rows were left out",
    )
