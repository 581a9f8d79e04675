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
from functools import lru_cache

import numpy as np

from tailor.data import mixing
from tailor.data.packing import in_order, largest_sum, pack
from tailor.data.rows import Batch, Row, StreamSlice, join
from tailor.errors import DataError
from tailor.plan.batches import BatchSpec

PACK_WINDOW = 4096
"""Groups that are packed together. A larger window fills rows better; a smaller one reads the store more sequentially."""

GROUP_WINDOW = 64
"""Number of batches whose groups are sorted by length together when rows are not packed."""


class Batches:
    """The batches of a run.

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
        self._starts = np.flatnonzero(self.positions == 0)
        """int[groups]: first example of each group."""
        self._ends = np.append(self._starts[1:], len(self.lengths))
        offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self._sizes = offsets[self._ends] - offsets[self._starts]
        """int[groups]: tokens of each group."""
        self._group_sources = self.sources[self._starts].astype(np.int64)
        """int[groups]: index of each group's source."""
        self.spec = spec
        self._first_step = [spec.first_step]  # first step of each epoch computed so far
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._lock = threading.Lock()  # the prefetch thread is ahead of the training thread

    def epoch(self, epoch: int) -> list[Batch]:
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
        packed = self._pack(order) if self.spec.pack else [(int(group),) for group in order]
        return [self._examples(row) for row in packed]

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
        return row.stop - row.start if isinstance(row, StreamSlice) else int(self.lengths[list(row)].sum())

    def _targets(self, row: Row) -> int:
        # In a stream all tokens are supervised: each input token predicts its successor.
        return row.stop - row.start if isinstance(row, StreamSlice) else int(self.supervised[list(row)].sum())

    def _make_epoch(self, epoch: int) -> list[Batch]:
        generator = np.random.default_rng([self.spec.seed, epoch])
        order = self._draw(generator)
        order = order[generator.permutation(len(order))]
        if not len(order):
            return []
        if self.spec.order == "short_to_long":
            return self._short_to_long(order)
        if self.spec.join:
            batches = self._joined(order, generator)
        else:
            batches = self._packed(order, generator) if self.spec.pack else self._grouped(order, generator)
        if epoch == 0 and batches:
            self._longest_first(batches)
        return batches

    def _draw(self, generator: np.random.Generator) -> np.ndarray:
        """int[k]: the groups of an epoch, in the order of the store."""
        return mixing.draw(self._group_sources, self._sizes, self.spec, generator)

    def _packed(self, order: np.ndarray, generator: np.random.Generator) -> list[Batch]:
        rows: list[Row] = []
        for start in range(0, len(order), PACK_WINDOW):
            packed = self._pack(order[start : start + PACK_WINDOW])
            rows += [self._examples(packed[index]) for index in generator.permutation(len(packed))]
        return self._full_rows(rows)

    def _short_to_long(self, order: np.ndarray) -> list[Batch]:
        """Batches of growing length. Packed rows have groups that are neighbors in this order, and may be less full."""
        order = order[np.argsort(self._sizes[order], kind="stable")]  # equal lengths in a random order
        if self.spec.pack:
            rows = in_order(order, self._sizes, self.spec.max_length)
            return self._full_rows([self._examples(row) for row in rows])
        batches = self._similar(order, self._row_count(order))
        return sorted(batches, key=lambda batch: max(self.length(row) for row in batch))

    def _joined(self, order: np.ndarray, generator: np.random.Generator) -> list[Batch]:
        """Batches of joined rows. The rows are shuffled again, so that a long document is spread over many batches."""
        rows = join(order, self.lengths, self.spec.max_length)
        return self._full_rows([rows[index] for index in generator.permutation(len(rows))])

    def _full_rows(self, rows: Sequence[Row]) -> list[Batch]:
        """Divide rows of about `max_length` tokens each into batches."""
        size = self.spec.batch_size or max(1, (self.spec.batch_tokens or 0) // self.spec.max_length)
        return [list(rows[start : start + size]) for start in range(0, len(rows), size)]

    def _grouped(self, order: np.ndarray, generator: np.random.Generator) -> list[Batch]:
        """Batches of groups with similar lengths, which reduces padding."""
        size = self._row_count(order)
        window = len(order) if self.spec.window is not None else size * GROUP_WINDOW
        batches = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            if self.spec.window is None:
                part = part[np.argsort(-self._sizes[part], kind="stable")]
            found = self._similar(part, size)
            batches += [found[index] for index in generator.permutation(len(found))]
        return batches

    def _row_count(self, order: np.ndarray) -> int:
        """Rows of a batch of single groups; with `batch_tokens`, on average."""
        tokens = (self.spec.batch_tokens or 0) / max(1.0, float(self._sizes[order].mean()))
        return self.spec.batch_size or max(1, round(tokens))

    def _similar(self, order: np.ndarray, size: int) -> list[Batch]:
        """Cut groups that are sorted by length into batches; with beacons, of the same number of windows."""
        if self.spec.window is not None:
            return self._by_windows(order, self.spec.window, size)
        return [
            [self._examples((int(index),)) for index in cut]
            for cut in np.split(order, self._cuts(order, size))
        ]

    def _by_windows(self, order: np.ndarray, window: int, size: int) -> list[Batch]:
        """Batches of groups with the same number of windows of `window` tokens, as activation beacons need them.

        The remainders smaller than a batch are combined, the ones with the most windows first.
        """
        counts = -(-self._sizes[order] // window)
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
        return [[self._examples((int(index),)) for index in cut] for cut in cuts]

    def _pack(self, groups: np.ndarray) -> list[Row]:
        return pack(groups, self._sizes, self.spec.max_length)

    def _examples(self, groups: Sequence[int]) -> Row:
        """The row that consists of the examples of these groups."""
        if len(self._starts) == len(self.lengths):
            return tuple(groups)
        return tuple(example for group in groups for example in range(self._starts[group], self._ends[group]))

    def _cuts(self, part: np.ndarray, size: int) -> Sequence[int]:
        """Indices at which to split groups into batches: every `size` groups, or every `batch_tokens` tokens."""
        if self.spec.batch_size:
            return range(size, len(part), size)
        filled = (np.cumsum(self._sizes[part]) - 1) // (self.spec.batch_tokens or 1)
        return [int(cut) for cut in np.flatnonzero(np.diff(filled)) + 1]

    def _longest_first(self, batches: list[Batch]) -> None:
        """Move the batch that needs the most memory to the front, so that a run that does not fit fails in its first step."""

        def cost(batch: Batch) -> tuple[int, int]:
            longest = max(self.length(row) for row in batch)
            return len(batch) * longest, max(self._longest_document(row) for row in batch)

        longest = max(range(len(batches)), key=lambda index: cost(batches[index]))
        batches[0], batches[longest] = batches[longest], batches[0]

    def _longest_document(self, row: Row) -> int:
        return self.length(row) if isinstance(row, StreamSlice) else int(self.lengths[list(row)].max())


def empty_epoch() -> DataError:
    """The error of data without a row to train on."""
    return DataError(
        "an epoch has no training example",
        hint="add rows, or see in `tailor data report` why rows were left out",
    )
