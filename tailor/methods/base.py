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
class LossSum:
    """What one micro-batch adds to the sums of its batch."""

    loss: torch.Tensor
    """Sum over what `Method.denominator` counts, a float32 scalar; with a graph in training."""
    statistics: dict[str, torch.Tensor] = field(default_factory=dict)
    """Other sums, scalars without a graph. The same names for every micro-batch."""


class MicroBatch(NamedTuple):
    """The rows of one forward pass of this worker."""

    number: int
    """Number among all micro-batches of the batch, those of other workers included."""
    batch: TokenBatch
    is_padding: bool
    """True for one that adds nothing: a worker without rows computes it, because every worker must make equally many
    passes (the collective operations inside them would wait for it)."""
    tokens: int
    """Tokens that the model reads, without padding; 0 for a padding micro-batch."""


class StepContext(Protocol):
    """Forward and backward passes of one step or one evaluation. All workers make them in the same order."""

    plan: Plan
    rank: int
    world: int
    device: torch.device

    def seed(self, number: int) -> int:
        """Seed of the dropout of a micro-batch. It depends on the micro-batch's number, not on the worker."""
        ...

    def forward(self, number: int, function: Callable[..., T], *arguments: Any) -> T:
        """`function(model, *arguments)` on the device, seeded for the micro-batch and in the run's precision.

        The function returns tensors, alone or in tuples, lists and dicts.
        """
        ...

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """Context of a forward pass and its backward pass. The last one of a step must reach every trained weight."""
        ...

    def backward(self, loss: torch.Tensor, denominator: int = 1) -> None:
        """Add the gradient of `loss / denominator`, summed over the workers."""
        ...

    def over_workers(self, values: torch.Tensor) -> torch.Tensor:
        """All-reduce (sum) of the workers' tensors, in place and without a graph."""
        ...

    def add(self, sums: LossSum, *, is_padding: bool = False) -> None:
        """Add to the totals of the step, which are those of all micro-batches and workers. Padding adds zeros."""
        ...


class Method(Protocol):
    """A loss that is summed over micro-batches and workers; the loop divides it by the denominator of the whole batch.

    So no number depends on how a batch is cut, or on how many workers share it.
    """

    has_prepass: bool = False
    """Whether `prepass` runs over the whole batch before its losses."""

    def denominator(self, batches: Batches, batch: Batch) -> int:
        """What the loss of a batch is averaged over, counted from lengths alone."""
        ...

    def cut(self, batches: Batches, batch: Batch, plan: Plan) -> list[list[slice]]:
        """The rows of each micro-batch, for any number of workers: one list for each kind of micro-batch.

        Every worker gets equally many of each kind.
        """
        size = plan.micro_batch_size
        return [[slice(at, min(at + size, len(batch))) for at in range(0, len(batch), size)]]

    def read(self, collator: Collator, batch: Batch, part: slice) -> TokenBatch:
        """The micro-batch of a part of a batch's rows."""
        return collator(batch[part])

    def prepass(self, model: CausalModel, batch: TokenBatch) -> torch.Tensor:
        """A sum over a micro-batch, without a graph, whose total the losses of the whole batch depend on."""
        raise AssertionError("has_prepass is False")

    def loss(self, model: CausalModel, batch: TokenBatch, prepass_mean: float) -> LossSum:
        """Loss and statistics of a micro-batch.

        prepass_mean: the total of `prepass` over the batch, divided by its denominator; 0 without one.
        """
        ...

    def evaluate(self, model: CausalModel, batch: TokenBatch, prepass_mean: float) -> LossSum:
        """The same on evaluation data."""
        return self.loss(model, batch, prepass_mean)

    def backward(
        self,
        context: StepContext,
        batches: Batches,
        batch: Batch,
        micro_batches: Sequence[MicroBatch],
        prepass_mean: float,
    ) -> None:
        """Add the gradient of the batch's loss, and its sums to the totals: here one micro-batch after the other."""
        denominator = max(1, self.denominator(batches, batch))
        for index, one in enumerate(micro_batches):
            with context.micro_batch(last=index == len(micro_batches) - 1):
                sums = LossSum(*context.forward(one.number, _as_tuple, self.loss, one.batch, prepass_mean))
                context.backward(sums.loss * float(not one.is_padding), denominator)
            context.add(sums, is_padding=one.is_padding)

    def measure(
        self,
        context: StepContext,
        batches: Batches,
        batch: Batch,
        micro_batches: Iterable[MicroBatch],
        prepass_mean: float,
    ) -> None:
        """Add the sums of a batch of evaluation data to the totals."""
        for one in micro_batches:
            sums = LossSum(*context.forward(one.number, _as_tuple, self.evaluate, one.batch, prepass_mean))
            context.add(sums, is_padding=one.is_padding)

    def metrics(self, sums: Mapping[str, float], denominator: int) -> dict[str, float]:
        """Figures for the record from the statistics' totals and from the `loss`, summed too."""
        ...


def _as_tuple(
    model: CausalModel, of: Callable[..., LossSum], batch: TokenBatch, prepass_mean: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    sums = of(model, batch, prepass_mean)  # strategies pass tensors through, and know no LossSum
    return sums.loss, sums.statistics
