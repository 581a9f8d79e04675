"""What the loop asks of a method. A method doesn't know the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from tailor.batches import Batch, Batches
from tailor.models.causal import CausalModel
from tailor.models.documents import Collator, TokenBatch


@dataclass(frozen=True)
class Summed:
    """What one micro-batch adds to its batch."""

    loss: torch.Tensor
    """Summed over the units, a float32 scalar; with a graph in training."""
    statistics: dict[str, torch.Tensor] = field(default_factory=dict)
    """Other sums, scalars without a graph. The same names for every micro-batch."""


class Method(Protocol):
    """A loss that is summed over units; the loop divides by the units of the whole batch.

    Every sum is over all micro-batches and workers, so that no number depends on how a batch is cut.
    """

    surveys: bool
    """Whether `survey` is asked before the losses of a batch."""

    def units(self, batches: Batches, batch: Batch) -> int:
        """What the loss of a batch is averaged over, counted from lengths alone."""
        ...

    def read(self, collator: Collator, batch: Batch, part: slice) -> TokenBatch:
        """The micro-batch of a part of a batch's rows."""
        ...

    def survey(self, model: CausalModel, batch: TokenBatch) -> torch.Tensor:
        """A sum over a micro-batch, without a graph, whose total the losses of the whole batch depend on."""
        ...

    def loss(self, model: CausalModel, batch: TokenBatch, surveyed: float) -> Summed:
        """Loss and statistics of a micro-batch. surveyed: total of the surveys, divided by the batch's units."""
        ...

    def evaluate(self, model: CausalModel, batch: TokenBatch, surveyed: float) -> Summed:
        """The same on evaluation data."""
        ...

    def metrics(self, sums: Mapping[str, float], units: int) -> dict[str, float]:
        """Figures for the record from the statistics' totals and from the `loss`, summed too."""
        ...
