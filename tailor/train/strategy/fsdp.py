"""FSDP2: weights, gradients and optimizer state are sharded along the first dimension, one decoder layer at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from tailor.models.causal import CausalModel, Parameters
from tailor.spec.strategy import Fsdp
from tailor.train.optimizer import build_optimizer, set_learning_rate, trained_parameters
from tailor.train.strategy.base import Shard, Sharded
from tailor.train.strategy.start import join_group, load_sharded

T = TypeVar("T")


class FullySharded(Sharded):
    """PyTorch's `fully_shard`, applied to each decoder layer and then to the whole model.

    Gradients are reduced and sharded in float32 after every micro-batch, so that no worker keeps an unsharded gradient.
    """

    def load(self) -> CausalModel:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        join_group(self.device)
        spec = self.plan.strategy
        assert isinstance(spec, Fsdp)
        param_dtype = torch.bfloat16 if self.plan.precision == "bf16" else None
        settings: dict[str, Any] = {
            "mesh": init_device_mesh(self.device.type, (self.world,)),
            "mp_policy": MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32),
            "offload_policy": CPUOffloadPolicy(pin_memory=self.device.type == "cuda")
            if spec.offload
            else OffloadPolicy(),
        }

        def shard(module: nn.Module) -> None:
            fully_shard(module, **settings)

        self.model, self._counts = load_sharded(self.plan, self.rank, self.world, self.device, shard)
        # Sum gradients instead of averaging: the loss is divided by the denominator of the global batch already.
        for module in self.model.modules():
            if hasattr(module, "set_gradient_divide_factor"):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo has no reduction with a factor
        self._parameters = dict(trained_parameters(self.model))
        return self.model

    def setup(self) -> None:
        self.optimizer = build_optimizer(self.plan.optim, self.model)

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        from torch.distributed.fsdp import FSDPModule

        result: T = self.model(function, *arguments)
        if not torch.is_grad_enabled():
            # Normally the backward pass does it for the model. A layer that raised an error, which a probe caught, keeps the
            # weights that it gathered.
            for module in self.model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()
        return result

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()

    def scale(self, loss: torch.Tensor, denominator: int) -> torch.Tensor:
        return loss / denominator

    def gradient_norm(self) -> float:
        parts = [_local(p.grad) for p in self._parameters.values() if p.grad is not None]
        squares = torch.stack([part.float().norm() ** 2 for part in parts]).sum()
        squares = squares.to(self.device)
        if self.world > 1:
            dist.all_reduce(squares)
        self._norm = math.sqrt(float(squares))
        return self._norm

    def update(self, learning_rate: float) -> None:
        limit = self.plan.optim.max_grad_norm
        if limit is not None:
            factor = min(1.0, limit / (self._norm + 1e-6))
            for parameter in self._parameters.values():
                if parameter.grad is not None:
                    _local(parameter.grad).mul_(factor)
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.step()
        self.skip()

    def skip(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def weights(self) -> Parameters:
        return self._counts

    def stored_tensors(self, parameter: Any) -> list[torch.Tensor]:
        return [self.unsharded_frozen_weight(parameter)]

    def unsharded_frozen_weight(self, parameter: nn.Parameter) -> torch.Tensor:
        return _gathered_full(parameter, self.device)

    @property
    def updates(self) -> int:
        steps = [state["step"] for state in self.optimizer.state.values() if "step" in state]
        return int(steps[0]) if steps else 0

    def shards(self) -> list[Shard]:
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        parts = []
        for name, parameter in trained_parameters(self.model):
            shape, offset = compute_local_shape_and_global_offset(
                parameter.shape,
                parameter.device_mesh,  # type: ignore[attr-defined]
                parameter.placements,  # type: ignore[attr-defined]
            )
            if (count := math.prod(shape)) > 0:
                start = offset[0] * math.prod(parameter.shape[1:]) if parameter.shape else 0
                parts.append(Shard(name, tuple(parameter.shape), start, start + count))
        return parts

    def state_keys(self) -> list[str]:
        states = next(iter(self.optimizer.state.values()), {})
        return [key for key, value in states.items() if _is_sharded(value)]

    def read(self, part: Shard, key: str | None = None) -> torch.Tensor:
        parameter = self._parameter(part)
        return _local(parameter if key is None else self.optimizer.state[parameter][key]).view(-1)

    def setup_state(self, keys: Iterable[str], updates: int) -> None:
        for parameter in self._parameters.values():
            state = {key: torch.zeros_like(parameter, requires_grad=False) for key in keys}
            if updates:
                state["step"] = torch.tensor(float(updates), device=_local(parameter).device)
            self.optimizer.state[parameter] = state

    def write(self, part: Shard, values: torch.Tensor, key: str | None = None) -> None:
        self.read(part, key).copy_(values)

    def sync(self) -> None:
        """Nothing to do: weights are gathered for every forward pass."""

    def _parameter(self, part: Shard) -> Any:
        return self._parameters[part.name]


def _is_sharded(value: Any) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def _local(value: torch.Tensor) -> torch.Tensor:
    """This worker's shard of a DTensor. Writing to it changes the DTensor."""
    return value.detach().to_local() if _is_sharded(value) else value.detach()  # type: ignore[attr-defined]


def _gathered_full(value: Any, device: torch.device) -> torch.Tensor:
    """The full tensor of a DTensor, gathered from all workers. A shard in host memory is copied to the GPU first, for NCCL."""
    from torch.distributed.tensor import DTensor

    if not _is_sharded(value):
        return value.detach()  # type: ignore[no-any-return]
    part = value.detach().to_local().to(device)
    on_device = DTensor.from_local(
        part, value.device_mesh, value.placements, shape=value.shape, stride=value.stride()
    )
    return on_device.full_tensor()
