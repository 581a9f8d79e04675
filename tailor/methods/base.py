"""The interface of a training method. The training loop calls a method; a method never imports the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from tailor.data.batches import Batch, Batches
from tailor.models.causal import CausalModel
from tailor.models.collator import Collator
from tailor.models.documents import TokenBatch
from tailor.plan import Plan

T = TypeVar("T")


@dataclass(frozen=True)
class LossSum:
    """Loss and statistics of one micro-batch, summed and not yet averaged."""

    loss: torch.Tensor
    """float32 scalar: the sum over the units that `Method.denominator` counts. In training it has a graph."""
    statistics: dict[str, torch.Tensor] = field(default_factory=dict)
    """Other sums by name, scalars without a graph. Every micro-batch has the same names."""


class MicroBatch(NamedTuple):
    """The rows of one forward pass of this worker."""

    number: int
    """Index of the micro-batch in the whole batch, counted over all workers."""
    batch: TokenBatch
    is_padding: bool
    """True for a micro-batch whose loss and gradient are multiplied by 0. A worker without rows computes one, because all
    workers must make the same number of passes: the collective operations in a pass wait for every worker."""
    tokens: int
    """Tokens without padding, each computed once; 0 for a padding micro-batch."""


class StepContext(Protocol):
    """Runs the forward and backward passes of one step or one evaluation. All workers run them in the same order."""

    plan: Plan
    rank: int
    world: int
    device: torch.device

    def seed(self, number: int) -> int:
        """Dropout seed of a micro-batch. It depends on the micro-batch's number and not on the worker, so that the number of
        workers does not change the result."""
        ...

    def forward(self, number: int, function: Callable[..., T], *arguments: Any) -> T:
        """Call `function(model, *arguments)` on the device, under autocast and with the seed of the micro-batch.

        The function returns a tensor, or tuples, lists or dicts of tensors: FSDP and DDP find no others.
        """
        ...

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """Context for one forward pass with its backward pass. last: reduce gradients now, so that the pass must use every
        trained weight (DDP waits for a gradient of each of them)."""
        ...

    def backward(self, loss: torch.Tensor, denominator: int = 1) -> None:
        """Accumulate the gradient of `loss / denominator`. The strategy sums it over the workers."""
        ...

    def over_workers(self, values: torch.Tensor) -> torch.Tensor:
        """All-reduce (sum) a tensor over the workers, in place and without a graph."""
        ...

    def add(self, sums: LossSum, *, is_padding: bool = False) -> None:
        """Add sums to the totals of the step, over all micro-batches and workers. Padding adds zeros."""
        ...


class Method(Protocol):
    """A loss that is summed over micro-batches and workers. The loop divides it by the denominator of the global batch.

    Therefore no result depends on the micro-batch size or on the number of workers. (A mean of micro-batch means does:
    it gives a token in a short micro-batch more weight.)
    """

    has_prepass: bool = False
    """Whether `prepass` must run over the whole batch before the losses, as KTO's KL estimate does."""

    def denominator(self, batches: Batches, batch: Batch) -> int:
        """Number that the summed loss of a batch is divided by, e.g. its supervised tokens. Computed from lengths alone, before
        any micro-batch is read."""
        ...

    def cut(self, batches: Batches, batch: Batch, plan: Plan) -> list[list[slice]]:
        """Split a batch into micro-batches: the rows of each, in one list per kind of micro-batch.

        The result does not depend on the number of workers. Each worker gets the same number of micro-batches of a kind.
        """
        size = plan.micro_batch_size
        return [[slice(first, min(first + size, len(batch))) for first in range(0, len(batch), size)]]

    def read(self, collator: Collator, batch: Batch, part: slice) -> TokenBatch:
        """Read the rows `part` of a batch and lay them out as one micro-batch."""
        return collator(batch[part])

    def prepass(self, model: CausalModel, batch: TokenBatch) -> torch.Tensor:
        """Scalar sum over a micro-batch, without a graph. The losses of the whole batch depend on its total."""
        raise AssertionError("has_prepass is False")

    def loss(self, model: CausalModel, batch: TokenBatch, prepass_mean: float) -> LossSum:
        """Compute the loss and the statistics of a micro-batch.

        prepass_mean: total of `prepass` over the batch, divided by the denominator; 0 without a pre-pass.
        """
        ...

    def evaluate(self, model: CausalModel, batch: TokenBatch, prepass_mean: float) -> LossSum:
        """Compute the loss and the statistics of a micro-batch of evaluation data."""
        return self.loss(model, batch, prepass_mean)

    def backward(
        self,
        context: StepContext,
        batches: Batches,
        batch: Batch,
        micro_batches: Sequence[MicroBatch],
        prepass_mean: float,
    ) -> None:
        """Accumulate the gradient of the batch's loss and add its sums to the totals, one micro-batch after another."""
        denominator = max(1, self.denominator(batches, batch))
        for index, micro in enumerate(micro_batches):
            with context.micro_batch(last=index == len(micro_batches) - 1):
                sums = LossSum(
                    *context.forward(micro.number, _as_tuple, self.loss, micro.batch, prepass_mean)
                )
                context.backward(sums.loss * float(not micro.is_padding), denominator)
            context.add(sums, is_padding=micro.is_padding)

    def measure(
        self,
        context: StepContext,
        batches: Batches,
        batch: Batch,
        micro_batches: Iterable[MicroBatch],
        prepass_mean: float,
    ) -> None:
        """Add the sums of a batch of evaluation data to the totals."""
        for micro in micro_batches:
            sums = LossSum(
                *context.forward(micro.number, _as_tuple, self.evaluate, micro.batch, prepass_mean)
            )
            context.add(sums, is_padding=micro.is_padding)

    def metrics(self, sums: Mapping[str, float], denominator: int) -> dict[str, float]:
        """Compute the metrics of a record. sums: totals of the statistics and of `loss`, over the whole batch."""
        ...


def _as_tuple(
    model: CausalModel, compute: Callable[..., LossSum], batch: TokenBatch, prepass_mean: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    # FSDP and DDP look for tensors in tuples and dicts; they would not find those of a LossSum.
    sums = compute(model, batch, prepass_mean)
    return sums.loss, sums.statistics
