"""What the loop asks of a method. A method doesn't know the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from tailor.data.batches import Batch, Batches
from tailor.models.causal import CausalModel
from tailor.models.documents import Collator, TokenBatch
from tailor.plan import Plan

T = TypeVar("T")


@dataclass(frozen=True)
class Summed:
    """What one micro-batch adds to its batch."""

    loss: torch.Tensor
    """Summed over the units, a float32 scalar; with a graph in training."""
    statistics: dict[str, torch.Tensor] = field(default_factory=dict)
    """Other sums, scalars without a graph. The same names for every micro-batch."""


class Work(NamedTuple):
    """A micro-batch of this worker."""

    number: int
    """Among all of the batch, whichever worker it is for."""
    batch: TokenBatch
    counts: bool
    """False for one that is computed only to stay in step with the other workers."""
    tokens: int
    """Read by the model, without padding."""


class Passes(Protocol):
    """Forward and backward passes in one step or one evaluation. All workers make them in the same order."""

    plan: Plan
    rank: int
    world: int
    device: torch.device

    def seed(self, number: int) -> int:
        """What dropout is seeded with in a micro-batch: its number decides, not the worker."""
        ...

    def forward(self, number: int, function: Callable[..., T], *arguments: Any) -> T:
        """`function(model, *arguments)` on the device, with the micro-batch's dropout, in the run's arithmetic.

        Tensors must come back alone or in tuples, lists and dicts.
        """
        ...

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around a forward pass and its backward pass. The last one of a step must reach every trained weight."""
        ...

    def backward(self, loss: torch.Tensor, units: int = 1) -> None:
        """Add the gradient of `loss / units`, summed over the workers."""
        ...

    def over_workers(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of the workers' tensors, in place. Without a graph."""
        ...

    def add(self, summed: Summed, counts: bool = True) -> None:
        """Add to the totals of all passes and workers, or add zeros."""
        ...


class Method(Protocol):
    """A loss that is summed over units; the loop divides by the units of the whole batch.

    Every sum is over all micro-batches and workers, so that no number depends on how a batch is cut.
    """

    surveys: bool = False
    """Whether `survey` is asked before the losses of a batch."""

    def units(self, batches: Batches, batch: Batch) -> int:
        """What the loss of a batch is averaged over, counted from lengths alone."""
        ...

    def parts(self, batches: Batches, batch: Batch, plan: Plan) -> list[list[slice]]:
        """How a batch's rows are cut into micro-batches, whatever the number of workers: one list for each kind of them.

        Every worker gets equally many of each kind.
        """
        size = plan.micro_batch_size
        return [[slice(at, min(at + size, len(batch))) for at in range(0, len(batch), size)]]

    def read(self, collator: Collator, batch: Batch, part: slice) -> TokenBatch:
        """The micro-batch of a part of a batch's rows."""
        return collator(batch[part])

    def survey(self, model: CausalModel, batch: TokenBatch) -> torch.Tensor:
        """A sum over a micro-batch, without a graph, whose total the losses of the whole batch depend on."""
        raise AssertionError("surveys is False")

    def loss(self, model: CausalModel, batch: TokenBatch, surveyed: float) -> Summed:
        """Loss and statistics of a micro-batch. surveyed: total of the surveys, divided by the batch's units."""
        ...

    def evaluate(self, model: CausalModel, batch: TokenBatch, surveyed: float) -> Summed:
        """The same on evaluation data."""
        return self.loss(model, batch, surveyed)

    def backward(
        self, passes: Passes, batches: Batches, batch: Batch, work: Sequence[Work], surveyed: float
    ) -> None:
        """Add the gradient of the batch's loss, and its sums to the totals: here one micro-batch after the other."""
        units = max(1, self.units(batches, batch))
        for index, one in enumerate(work):
            with passes.micro_batch(last=index == len(work) - 1):
                summed = Summed(*passes.forward(one.number, _plain, self.loss, one.batch, surveyed))
                passes.backward(summed.loss * float(one.counts), units)
            passes.add(summed, one.counts)

    def measure(
        self, passes: Passes, batches: Batches, batch: Batch, work: Iterable[Work], surveyed: float
    ) -> None:
        """Add the sums of a batch of evaluation data to the totals."""
        for one in work:
            summed = Summed(*passes.forward(one.number, _plain, self.evaluate, one.batch, surveyed))
            passes.add(summed, one.counts)

    def metrics(self, sums: Mapping[str, float], units: int) -> dict[str, float]:
        """Figures for the record from the statistics' totals and from the `loss`, summed too."""
        ...


def _plain(
    model: CausalModel, of: Callable[..., Summed], batch: TokenBatch, surveyed: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    summed = of(model, batch, surveyed)
    return summed.loss, summed.statistics
