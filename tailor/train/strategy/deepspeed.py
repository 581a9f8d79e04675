"""DeepSpeed's ZeRO: its engine makes the steps, driven by our loop.

Accumulation is ours: the engine is told which micro-batch is a step's last, and divides by nothing but the number of
workers, which `scale` puts back. What of DeepSpeed's optimizers has no public name is named in `internals`.
"""

from __future__ import annotations

import logging
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from tailor.errors import ScaleError
from tailor.models.causal import CausalModel
from tailor.spec.strategy import DeepSpeed
from tailor.train.optimizer import build_optimizer, set_learning_rate, shape_of, trained_parameters
from tailor.train.strategy.base import Shard, Sharded
from tailor.train.strategy.internals import Shards, shards_of
from tailor.train.strategy.start import join_group, load_sharded, load_unsharded

T = TypeVar("T")


class Zero(Sharded):
    """ZeRO stage 1, 2 or 3. In stage 3 the weights are shared out too, from the moment they are loaded."""

    def load(self) -> CausalModel:
        spec = self.plan.strategy
        assert isinstance(spec, DeepSpeed)
        self._stage = spec.stage
        deepspeed = _imported(self.device)
        join_group(self.device)
        deepspeed.init_distributed(
            dist_backend=torch.distributed.get_backend(), dist_init_required=False, verbose=False
        )
        if self._stage < 3:
            self.model = load_unsharded(self.plan, self.device)
            self._counts = self.model.weights()
            return self.model
        base_record = torch.bfloat16 if self.plan.precision == "bf16" else torch.float32
        cut = deepspeed.zero.Init(config_dict_or_path=self.plan.deepspeed, dtype=base_record)

        def place(module: nn.Module) -> None:
            for parameter in module.parameters():
                if not hasattr(parameter, "ds_id"):
                    parameter.data = parameter.data.to(base_record)
                    cut._convert_to_zero_parameters([parameter])

        self.model, self._counts = load_sharded(self.plan, self.rank, self.world, self.device, place)
        return self.model

    def setup(self) -> None:
        deepspeed = _imported(self.device)
        self.optimizer = build_optimizer(self.plan.optim, self.model)
        self._engine, *_ = deepspeed.initialize(
            model=self.model, optimizer=self.optimizer, config=self.plan.deepspeed, dist_init_required=False
        )
        assert type(self._engine).__name__ == "DeepSpeedEngine"
        assert self._engine.zero_optimization_stage() == self._stage
        assert self._engine.gradient_accumulation_steps() == 1
        if self._stage == 3:
            # The loss takes the head's weight without calling the head, and embeddings that of the projection.
            modules = (self.model.head, self.model.projection)
            for parameter in (p for module in modules if module is not None for p in module.parameters()):
                deepspeed.zero.register_external_parameter(self.model, parameter)
        self._parts: Shards = shards_of(self._engine, self._stage)

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        self._engine.train(self.model.training)
        with self._regathered_weights():
            result: T = self._engine(function, *arguments)
        return result

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: torch.Tensor, denominator: int) -> None:
        with self._regathered_weights():  # activation checkpointing computes layers again
            self._engine.backward(self.scale(loss, denominator), scale_wrt_gas=False)

    @contextmanager
    def _regathered_weights(self) -> Iterator[None]:
        """In stage 3, linear layers keep no weight for the backward pass but gather it again: PyTorch's own would keep a
        transposed view of each, and with it all gathered weights of the model.
        """
        own = nn.functional.linear
        if self._stage == 3:
            from deepspeed.runtime.zero.linear import zero3_linear_wrap

            nn.functional.linear = zero3_linear_wrap
        try:
            yield
        finally:
            nn.functional.linear = own

    def gradient_norm(self) -> float:
        norm = float(self._parts.gradient_norm())
        return norm if norm >= 0 else math.nan  # DeepSpeed says -1 of one that is no number

    def update(self, learning_rate: float) -> None:
        set_learning_rate(self.optimizer, learning_rate)
        self._engine.step()
        self._parts.after_step()

    def skip(self) -> None:
        self._parts.clear_gradients()

    def weights(self) -> tuple[int, int]:
        return self._counts

    def values(self, parameter: Any) -> list[torch.Tensor]:
        return super().values(parameter) if self._stage < 3 else [self.unsharded_frozen_weight(parameter)]

    def unsharded_frozen_weight(self, parameter: nn.Parameter) -> torch.Tensor:
        if self._stage < 3:
            return parameter.detach()
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    @property
    def updates(self) -> int:
        steps = [state["step"] for state in self._parts.states() if "step" in state]
        return int(steps[0]) if steps else 0

    def shards(self) -> list[Shard]:
        found = []
        for name, parameter in trained_parameters(self.model):
            start, stop = self._parts.bounds(parameter)
            if start < stop:
                found.append(Shard(name, shape_of(parameter), start, stop))
        return found

    def state_keys(self) -> list[str]:
        states = self._parts.states()
        return (
            [key for key, value in states[0].items() if torch.is_tensor(value) and value.dim()]
            if states
            else []
        )

    def read(self, part: Shard, key: str | None = None) -> torch.Tensor:
        return self._parts.read(self._named(part), key)[: part.stop - part.start]

    def setup_state(self, keys: Iterable[str], updates: int) -> None:
        for flat in self._parts.flat():
            state = {key: torch.zeros_like(flat) for key in keys}
            if updates:
                state["step"] = torch.tensor(float(updates), device=flat.device)
            self.optimizer.state[flat] = state

    def write(self, part: Shard, values: torch.Tensor, key: str | None = None) -> None:
        self._parts.write(self._named(part), values, key)

    def sync(self) -> None:
        self._parts.sync()

    def _named(self, part: Shard) -> nn.Parameter:
        return dict(trained_parameters(self.model))[part.name]


def _imported(device: torch.device) -> Any:
    """The package, quiet, with its CPU form where there is no GPU. ScaleError when it is not installed."""
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        import deepspeed
    except ImportError as error:
        raise ScaleError(
            f"scale.strategy deepspeed needs the package deepspeed: {error}",
            hint="pip install 'tailor[deepspeed]' wherever workers run, or set scale.strategy: fsdp",
        ) from error
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    if device.type == "cpu":
        # Its shared-memory collectives would be compiled for most of a minute at the first start.
        deepspeed.ops.__compatible_ops__ = defaultdict(bool)
    return deepspeed
