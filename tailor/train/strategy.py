"""How one step's gradients become the same on every worker."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tailor.methods import Method, Summed
from tailor.models.causal import CausalModel
from tailor.models.documents import TokenBatch
from tailor.train.host import Host
from tailor.train.optimizer import trained_parameters


class _SummedLoss(nn.Module):
    """The method's loss as a module's forward, which is where data parallelism hooks in."""

    def __init__(self, model: CausalModel, method: Method) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, batch: TokenBatch, surveyed: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        summed = self.method.loss(self.model, batch, surveyed)
        return summed.loss, summed.statistics


class DataParallel:
    """Every worker holds all weights; gradients are summed over the workers in the last backward of a step."""

    def __init__(self, model: CausalModel, method: Method, host: Host) -> None:
        self.world = host.world
        module = _SummedLoss(model, method)
        self._forward: Any = module
        if host.world > 1:
            for _, parameter in trained_parameters(model):
                dist.broadcast(parameter.data, src=0)
            self._forward = nn.parallel.DistributedDataParallel(
                module, init_sync=False, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def loss(self, batch: TokenBatch, surveyed: float) -> Summed:
        """Summed loss and statistics of a micro-batch."""
        return Summed(*self._forward(batch, surveyed))

    def accumulating(self) -> AbstractContextManager[Any]:
        """For every micro-batch of a step but the last: gradients stay on this worker."""
        return self._forward.no_sync() if self.world > 1 else nullcontext()

    def scale(self, loss: torch.Tensor, units: int) -> torch.Tensor:
        """What to call backward on. The workers' gradients are averaged, so their number is put back."""
        return loss * (self.world / units)
