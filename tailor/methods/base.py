"""What the loop asks of a method. A method doesn't know the loop."""

from __future__ import annotations

from typing import Protocol

import torch

from tailor.batches import Batch, Batches
from tailor.models.causal import CausalModel
from tailor.models.documents import TokenBatch


class Method(Protocol):
    """A loss that is summed over units; the loop divides by the units of the whole batch."""

    def units(self, batches: Batches, batch: Batch) -> int:
        """What the loss of a batch is averaged over, counted from lengths alone."""
        ...

    def loss(self, model: CausalModel, batch: TokenBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Summed loss of a micro-batch, a float32 scalar with a graph; and further sums to report by name, without.

        The names are the same in every micro-batch and on every worker.
        """
        ...

    def evaluate(self, model: CausalModel, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss without a graph, and the number of units that were predicted right."""
        ...
