"""What the loop asks of a strategy: how weights are base_record, and how one step's gradients become one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist

from tailor.models.causal import CausalModel
from tailor.plan import Plan
from tailor.train.host import Host
from tailor.train.optimizer import shape_of

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """This worker's part of a trained weight: elements `start` to `stop` of it, flattened."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Strategy(ABC):
    """One model, its weights placed, with its optimizer. Every worker calls everything in the same order."""

    is_sharded: ClassVar[bool]
    """Whether a worker has only a part of what a checkpoint holds. `Sharded` says how it is reached."""

    model: CausalModel
    optimizer: Any
    """PyTorch's optimizer, or what stands for one."""
    scaler: torch.amp.GradScaler
    """Of fp16 gradients; does nothing elsewhere."""

    def __init__(self, plan: Plan, host: Host) -> None:
        self.plan, self.world, self.rank, self.device = plan, host.world, host.rank, host.device
        self.scaler = torch.amp.GradScaler(host.device.type, enabled=False)

    @abstractmethod
    def load(self) -> CausalModel:
        """Load the model and place its weights. Raises ModelError."""

    @abstractmethod
    def setup(self) -> None:
        """Make the optimizer, once the weights are those that training starts from."""

    @abstractmethod
    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(model, *arguments)`, with all weights in reach. The only way to compute with the model.

        Tensors must come back alone or in tuples, lists and dicts, where the strategies look for them.
        """

    @abstractmethod
    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of each micro-batch of a step."""

    def scale(self, loss: torch.Tensor, denominator: int) -> torch.Tensor:
        """What to call backward on. Averaging over the workers is undone: gradients are summed."""
        return loss * (self.world / denominator)

    def backward(self, loss: torch.Tensor, denominator: int) -> None:
        """Add the gradient of a summed loss, divided by the denominator of the whole batch."""
        self.scaler.scale(self.scale(loss, denominator)).backward()

    @abstractmethod
    def gradient_norm(self) -> float:
        """L2 norm of the step's gradient over all weights and workers, before it is clipped."""

    @abstractmethod
    def update(self, learning_rate: float) -> None:
        """Scale the gradient down to the plan's limit, make the optimizer's step, and forget the gradient."""

    @abstractmethod
    def skip(self) -> None:
        """Forget the gradient."""

    def weights(self) -> tuple[int, int]:
        """How many weights are trained, and how many there are, of the whole model."""
        return self.model.weights()

    def values(self, parameter: Any) -> list[torch.Tensor]:
        """A whole weight, and the constants of a 4-bit or 8-bit one."""
        tensors = [parameter.detach()]
        if (state := getattr(parameter, "quant_state", None)) is not None:
            constants = state.as_dict(packed=False)
            tensors += [constants[key] for key in sorted(constants) if torch.is_tensor(constants[key])]
        if (scales := getattr(parameter, "SCB", None)) is not None:
            tensors.append(scales)
        return tensors

    @abstractmethod
    def unsharded_weights(self) -> Iterable[tuple[str, torch.Tensor]]:
        """Name in `model.network` and value of what the artifact holds: the adapter's weights, or all of them.

        One after another, so that none but the caller keeps them; on rank 0 only, though all must iterate.
        """


class Sharded(Strategy):
    """A strategy whose workers hold parts of the weights and of the optimizer's state."""

    is_sharded = True

    @property
    @abstractmethod
    def updates(self) -> int:
        """Steps that the optimizer has made."""

    @abstractmethod
    def shards(self) -> list[Shard]:
        """What this worker holds of the trained weights."""

    @abstractmethod
    def state_keys(self) -> list[str]:
        """Names of the optimizer's states that have a number for each element."""

    @abstractmethod
    def read(self, part: Shard, key: str | None = None) -> torch.Tensor:
        """A part's weight, or its state of the optimizer: float32[stop - start]."""

    @abstractmethod
    def setup_state(self, keys: Iterable[str], updates: int) -> None:
        """Make room for the optimizer's state, to be written."""

    @abstractmethod
    def write(self, part: Shard, values: torch.Tensor, key: str | None = None) -> None:
        """The other way of `read`."""

    @abstractmethod
    def sync(self) -> None:
        """Every part was written: bring the weights that are computed with in line."""

    def unsharded_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        own: dict[str, list[Shard]] = {}
        for part in self.shards():
            own.setdefault(part.name, []).append(part)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                whole = self._gathered(shape_of(parameter), own.get(name, []))
            elif self.plan.model.adapter is None:
                whole = self.unsharded_frozen_weight(parameter)
            else:
                continue
            if self.rank == 0:
                yield name.removeprefix("network."), whole.cpu()
        if self.rank == 0 and self.plan.model.adapter is None:
            kept = self.model.network.state_dict().keys()
            yield from (
                (name, value.cpu()) for name, value in self.model.network.named_buffers() if name in kept
            )

    @abstractmethod
    def unsharded_frozen_weight(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """A whole weight that is not trained."""

    def _gathered(self, shape: tuple[int, ...], parts: list[Shard]) -> torch.Tensor:
        """A whole trained weight, float32, on rank 0."""
        whole = torch.zeros(shape, device=self.device)
        for part in parts:
            whole.view(-1)[part.start : part.stop] = self.read(part).to(self.device)
        if self.world > 1:
            dist.reduce(whole, dst=0)  # the parts are disjoint, so nothing is rounded
        return whole
