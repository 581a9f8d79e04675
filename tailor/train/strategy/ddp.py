"""Data parallelism: every worker has all weights, and gradients are reduced in the last backward pass of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn

from tailor.models.causal import CausalModel
from tailor.train.optimizer import build_optimizer, set_learning_rate, trained_parameters
from tailor.train.strategy.base import Strategy
from tailor.train.strategy.start import load_unsharded

T = TypeVar("T")


class DataParallel(Strategy):
    """PyTorch's DistributedDataParallel; for a single worker, the plain model."""

    is_sharded = False

    def load(self) -> CausalModel:
        self.model = load_unsharded(self.plan, self.device)
        return self.model

    def setup(self) -> None:
        self._training: Any = self.model
        self.broadcast_trained()
        if self.world > 1:
            self._training = nn.parallel.DistributedDataParallel(
                self.model, init_sync=False, broadcast_buffers=False, gradient_as_bucket_view=True
            )
            self._make_buckets()
        self.optimizer = build_optimizer(self.plan.optim, self.model)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.plan.precision == "fp16")

    def _make_buckets(self) -> None:
        """Make every gradient a view of DDP's buckets from the first micro-batch on, with two passes of zero gradients.

        DDP rebuilds its buckets after the first pass that it reduces, and only reduced gradients are views of them. Without
        these passes, the gradients that accumulate under `no_sync` would be allocated a second time outside the buckets.
        """
        for _ in range(2):
            for _, parameter in trained_parameters(self.model):
                parameter.grad = None  # a gradient would keep the memory of the replaced bucket alive
            one_each = self._training(_one_element_each)
            one_each.backward(torch.zeros_like(one_each))

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        called = self._training if torch.is_grad_enabled() else self.model
        result: T = called(function, *arguments)
        return result

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last or self.world == 1 else self._training.no_sync()

    def gradient_norm(self) -> float:
        self.scaler.unscale_(self.optimizer)
        limit = self.plan.optim.max_grad_norm
        parameters = [parameter for _, parameter in trained_parameters(self.model)]
        return float(nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit))

    def update(self, learning_rate: float) -> None:
        set_learning_rate(self.optimizer, learning_rate)
        self.scaler.step(self.optimizer)
        self.skip()

    def skip(self) -> None:
        self.scaler.update()
        # With several workers, gradients stay views of DDP's buckets: they are zeroed, not freed.
        self.optimizer.zero_grad(set_to_none=self.world == 1)

    def unsharded_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        if self.rank == 0:
            yield from self.model.network.state_dict().items()


def _one_element_each(model: CausalModel) -> torch.Tensor:
    """The first element of every trained weight: the cheapest function that uses all of them."""
    return torch.stack([parameter.flatten()[0].float() for _, parameter in trained_parameters(model)])
