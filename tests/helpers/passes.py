"""A method's passes without the loop: one worker, no strategy, gradients in the model's own weights."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tailor.data.batches import Batches
from tailor.data.split import Split
from tailor.methods import LossSum, Method
from tailor.methods.base import MicroBatch
from tailor.models.causal import CausalModel
from tailor.models.collator import Collator


class OneWorker:
    """Adds up what it is given. `replays`: whether a micro-batch has the same dropout each time."""

    rank, world, device = 0, 1, torch.device("cpu")

    def __init__(self, model: CausalModel, *, replays: bool = True, **plan: Any) -> None:
        self.model, self.replays = model, replays
        self.plan: Any = SimpleNamespace(
            **{"micro_batch_size": 2, "chunk_size": 3, "chunk_tokens": 0, **plan}
        )
        self.sums: dict[str, float] = {}
        self._calls = 0

    def seed(self, number: int) -> int:
        self._calls += 1
        return number if self.replays else 1000 + self._calls

    def forward(self, number: int, function: Any, *arguments: Any) -> Any:
        torch.manual_seed(self.seed(number))
        return function(self.model, *arguments)

    def micro_batch(self, *, last: bool) -> Any:
        return nullcontext()

    def backward(self, loss: torch.Tensor, denominator: int = 1) -> None:
        (loss / denominator).backward()

    def over_workers(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def add(self, sums: LossSum, *, is_padding: bool = False) -> None:
        for name, value in {"loss": sums.loss, **sums.statistics}.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach()) * (not is_padding)


def micro_batches_of(
    method: Method, context: OneWorker, batches: Batches, split: Split, step: int = 0
) -> list[MicroBatch]:
    """All micro-batches of a step."""
    collator = Collator(split, context.model.layout, packs=False)
    batch = batches.batch(step)
    parts = [part for kind in method.cut(batches, batch, context.plan) for part in kind]
    return [
        MicroBatch(number, method.read(collator, batch, part), False, batches.tokens(batch[part]))
        for number, part in enumerate(parts)
    ]


def gradient(model: torch.nn.Module) -> torch.Tensor:
    """Of all trained weights, one after another, and forgotten."""
    parts = [p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None]
    model.zero_grad(set_to_none=True)
    return torch.cat(parts).double()


def relative(left: torch.Tensor, right: torch.Tensor) -> float:
    """Relative difference in L2."""
    return float((left - right).norm() / right.norm())


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors made inside it that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.nbytes() >= 1024:
                    self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: kept for key, kept in self._alive.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out
