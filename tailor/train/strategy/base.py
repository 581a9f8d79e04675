"""The interface of a strategy: how weights are distributed, and how the workers' gradients are reduced to one update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist

from tailor.models.causal import CausalModel, Parameters
from tailor.plan import Plan
from tailor.train.host import Host
from tailor.train.optimizer import saved_parameters, shape_of

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """This worker's part of a trained weight: elements `start` to `stop` of the flattened weight. shape: of the full weight."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Strategy(ABC):
    """A model with its optimizer, distributed over the workers. Every worker must make the same calls in the same order."""

    is_sharded: ClassVar[bool]
    """Whether each worker has only a part of the trained weights or of the optimizer state; then it is a `Sharded`."""

    model: CausalModel
    optimizer: Any
    """A PyTorch optimizer, or DeepSpeed's equivalent."""
    scaler: torch.amp.GradScaler
    """Gradient scaler for fp16; disabled for other precisions."""

    def __init__(self, plan: Plan, host: Host) -> None:
        self.plan, self.world, self.rank, self.device = plan, host.world, host.rank, host.device
        self.scaler = torch.amp.GradScaler(host.device.type, enabled=False)

    @abstractmethod
    def load(self) -> CausalModel:
        """Load the model and distribute its weights. Raises ModelError."""

    @abstractmethod
    def setup(self) -> None:
        """Make the optimizer. Called once after `load`, before weights are restored from a checkpoint."""

    @abstractmethod
    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call `function(model, *arguments)` with all weights available. Every computation with the model goes through it.

        The function must return a tensor, or tuples, lists or dicts of tensors: FSDP and DDP find no others.
        """

    @abstractmethod
    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """Context for the forward and backward pass of one micro-batch. last: the gradients are reduced, as without `no_sync`."""

    def scale(self, loss: torch.Tensor, denominator: int) -> torch.Tensor:
        """The loss to call backward on. Times the number of workers, because DDP and DeepSpeed average gradients over the
        workers, and they must be summed."""
        return loss * (self.world / denominator)

    def backward(self, loss: torch.Tensor, denominator: int) -> None:
        """Accumulate the gradient of a summed loss, divided by the denominator of the global batch."""
        self.scaler.scale(self.scale(loss, denominator)).backward()

    @abstractmethod
    def gradient_norm(self) -> float:
        """L2 norm of the step's reduced gradient over all weights, before clipping. The same on every worker."""

    @abstractmethod
    def update(self, learning_rate: float) -> None:
        """Clip the gradient to `optim.max_grad_norm`, run the optimizer's step, and clear the gradient."""

    @abstractmethod
    def skip(self) -> None:
        """Clear the gradient without an update."""

    def evaluation_weights(self) -> AbstractContextManager[Any]:
        """Context in which the model has the weights to evaluate and to save, for an optimizer that averages them."""
        averaged = getattr(self.optimizer, "averaged", None)
        return nullcontext() if averaged is None else averaged()

    def broadcast_trained(self) -> None:
        """Give every worker the weights of rank 0 that checkpoints have. The others are read from the same files."""
        if self.world > 1:
            for _, parameter in saved_parameters(self.model):
                dist.broadcast(parameter.data, src=0)

    def weights(self) -> Parameters:
        """Numbers of parameters of the model before sharding."""
        return self.model.weights()

    def stored_tensors(self, parameter: Any) -> list[torch.Tensor]:
        """A full weight, followed by the quantization constants of a 4-bit or 8-bit one."""
        tensors = [parameter.detach()]
        if (state := getattr(parameter, "quant_state", None)) is not None:
            constants = state.as_dict(packed=False)
            tensors += [constants[key] for key in sorted(constants) if torch.is_tensor(constants[key])]
        if (scales := getattr(parameter, "SCB", None)) is not None:
            tensors.append(scales)
        return tensors

    @abstractmethod
    def unsharded_weights(self) -> Iterable[tuple[str, torch.Tensor]]:
        """Yield (name in `model.network`, full weight) for the artifact: the adapter's weights, or all weights without one.

        Every rank must iterate, rank 0 gets the weights. They are gathered one at a time, to save memory.
        """


class Sharded(Strategy):
    """A strategy in which each worker has shards of the weights or of the optimizer state."""

    is_sharded = True

    @property
    @abstractmethod
    def updates(self) -> int:
        """Number of steps that the optimizer has made."""

    @abstractmethod
    def shards(self) -> list[Shard]:
        """This worker's shards of the trained weights."""

    @abstractmethod
    def state_keys(self) -> list[str]:
        """Names of the optimizer states with one number per element, e.g. `exp_avg`."""

    @abstractmethod
    def read(self, part: Shard, key: str | None = None) -> torch.Tensor:
        """A shard's elements of the weight, or of the optimizer state `key`: float32[stop - start]."""

    @abstractmethod
    def setup_state(self, keys: Iterable[str], updates: int) -> None:
        """Allocate optimizer states for `write`, with `updates` as their step count."""

    @abstractmethod
    def write(self, part: Shard, values: torch.Tensor, key: str | None = None) -> None:
        """Write what `read` returns: float32[stop - start]."""

    @abstractmethod
    def sync(self) -> None:
        """Update the weights of the forward pass after shards were written."""

    def unsharded_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        by_name: dict[str, list[Shard]] = {}
        for part in self.shards():
            by_name.setdefault(part.name, []).append(part)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                full = self._gathered(shape_of(parameter), by_name.get(name, []))
            elif self._is_saved(name):
                full = self.unsharded_frozen_weight(parameter)
            else:
                continue
            if self.rank == 0:
                yield name.removeprefix("network."), full.cpu()
        if self.rank == 0:
            saved = self.model.network.state_dict().keys()  # without non-persistent buffers
            yield from (
                (name, value.cpu())
                for name, value in self.model.network.named_buffers()
                if name in saved and self._is_saved(name)
            )

    def _is_saved(self, name: str) -> bool:
        """Whether the artifact has a tensor that is not trained: without an adapter all, else those of modules that are trained
        in full, such as the bias of a router that only chooses experts."""
        return self.plan.model.adapter is None or ".modules_to_save." in name

    @abstractmethod
    def unsharded_frozen_weight(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """A full weight that is not trained. A collective call."""

    def _gathered(self, shape: tuple[int, ...], parts: list[Shard]) -> torch.Tensor:
        """A full trained weight, float32, on rank 0. A collective call."""
        full = torch.zeros(shape, device=self.device)
        for part in parts:
            full.view(-1)[part.start : part.stop] = self.read(part).to(self.device)
        if self.world > 1:
            dist.reduce(full, dst=0)  # a sum, and exact: each element is nonzero on one worker only
        return full
