"""DeepSpeed's ZeRO, stages 1 to 3 (Rajbhandari et al. 2020, arXiv 1910.02054). The training loop drives its engine.

The loop does the gradient accumulation: it marks the last micro-batch of a step for the engine. The engine divides
gradients by the number of workers only, which `Strategy.scale` undoes. All use of DeepSpeed's private attributes is in
`internals`.
"""

from __future__ import annotations

import logging
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn

from tailor.errors import ModelError, ScaleError
from tailor.machine import COLLECTIVE_TIMEOUT
from tailor.models import recurrence
from tailor.models.causal import CausalModel, Parameters
from tailor.spec.strategy import DeepSpeed
from tailor.train.optimizer import build_optimizer, set_learning_rate, shape_of, trained_parameters
from tailor.train.strategy.base import Shard, Sharded
from tailor.train.strategy.internals import ZeroShards, set_group_timeout, shards_of, without_broadcast
from tailor.train.strategy.regather import regathering
from tailor.train.strategy.start import join_group, load_sharded, load_unsharded

T = TypeVar("T")


class Zero(Sharded):
    """ZeRO stage 1, 2 or 3. In stage 3 the weights are sharded too, already while they are loaded."""

    def load(self) -> CausalModel:
        spec = self.plan.strategy
        assert isinstance(spec, DeepSpeed)
        self._stage = spec.stage
        deepspeed = _imported(self.device)
        join_group(self.device)
        deepspeed.init_distributed(
            dist_backend=torch.distributed.get_backend(), dist_init_required=False, verbose=False
        )
        set_group_timeout(COLLECTIVE_TIMEOUT)
        if self._stage < 3:
            self.model = load_unsharded(self.plan, self.device)
            self._counts = self.model.weights()
            return self.model
        dtype = torch.bfloat16 if self.plan.precision == "bf16" else torch.float32
        zero_init = deepspeed.zero.Init(config_dict_or_path=self.plan.deepspeed, dtype=dtype)

        def shard(module: nn.Module) -> None:
            for parameter in module.parameters():
                if not hasattr(parameter, "ds_id"):
                    parameter.data = parameter.data.to(dtype)
                    zero_init._convert_to_zero_parameters([parameter])

        self.model, self._counts = load_sharded(self.plan, self.rank, self.world, self.device, shard)
        if recurrence.is_isolated(self.model.base):
            # Stage 3 gathers a module's weights at each of its calls, and a recurrent layer calls its modules once per group
            # of documents: the workers would not gather equally often.
            raise ModelError(
                f"the recurrent layers of {type(self.model.base).__name__} cannot isolate packed documents under "
                "DeepSpeed's stage 3",
                hint="set data.pack: false, or scale.strategy: fsdp or ddp",
            )
        return self.model

    def setup(self) -> None:
        deepspeed = _imported(self.device)
        self.optimizer = build_optimizer(self.plan.optim, self.model)
        if self._stage < 3:
            self.broadcast_trained()
        with without_broadcast():
            self._engine, *_ = deepspeed.initialize(
                model=self.model,
                optimizer=self.optimizer,
                config=self.plan.deepspeed,
                dist_init_required=False,
            )
        assert type(self._engine).__name__ == "DeepSpeedEngine"
        assert self._engine.zero_optimization_stage() == self._stage
        assert self._engine.gradient_accumulation_steps() == 1
        if self._stage == 3:
            # The loss uses the head's weight without calling the head, and embedding uses the projection's in the same way.
            modules = (self.model.head, self.model.projection)
            for parameter in (p for module in modules if module is not None for p in module.parameters()):
                deepspeed.zero.register_external_parameter(self.model, parameter)
        self._shards: ZeroShards = shards_of(self._engine, self._stage)

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
        with self._regathered_weights():  # for the layers that activation checkpointing computes again
            self._engine.backward(self.scale(loss, denominator), scale_wrt_gas=False)

    def _regathered_weights(self) -> AbstractContextManager[None]:
        """In stage 3, weights are gathered again for the backward pass instead of being kept."""
        return regathering() if self._stage == 3 else nullcontext()

    def gradient_norm(self) -> float:
        norm = float(self._shards.gradient_norm())
        return norm if norm >= 0 else math.nan  # DeepSpeed returns -1 for a norm that is not finite

    def update(self, learning_rate: float) -> None:
        set_learning_rate(self.optimizer, learning_rate)
        self._engine.step()
        self._shards.after_step()

    def skip(self) -> None:
        self._shards.clear_gradients()

    def weights(self) -> Parameters:
        return self._counts

    def stored_tensors(self, parameter: Any) -> list[torch.Tensor]:
        return (
            super().stored_tensors(parameter)
            if self._stage < 3
            else [self.unsharded_frozen_weight(parameter)]
        )

    def unsharded_frozen_weight(self, parameter: nn.Parameter) -> torch.Tensor:
        if self._stage < 3:
            return parameter.detach()
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    @property
    def updates(self) -> int:
        steps = [state["step"] for state in self._shards.states() if "step" in state]
        return int(steps[0]) if steps else 0

    def shards(self) -> list[Shard]:
        shards = []
        for name, parameter in trained_parameters(self.model):
            start, stop = self._shards.bounds(parameter)
            if start < stop:
                shards.append(Shard(name, shape_of(parameter), start, stop))
        return shards

    def state_keys(self) -> list[str]:
        states = self._shards.states()
        return (
            [key for key, value in states[0].items() if torch.is_tensor(value) and value.dim()]
            if states
            else []
        )

    def read(self, part: Shard, key: str | None = None) -> torch.Tensor:
        return self._shards.read(self._parameter(part), key)[: part.stop - part.start]

    def setup_state(self, keys: Iterable[str], updates: int) -> None:
        for flat in self._shards.flat():
            state = {key: torch.zeros_like(flat) for key in keys}
            if updates:
                state["step"] = torch.tensor(float(updates), device=flat.device)
            self.optimizer.state[flat] = state

    def write(self, part: Shard, values: torch.Tensor, key: str | None = None) -> None:
        self._shards.write(self._parameter(part), values, key)

    def sync(self) -> None:
        self._shards.sync()

    def _parameter(self, part: Shard) -> nn.Parameter:
        return dict(trained_parameters(self.model))[part.name]


def _imported(device: torch.device) -> Any:
    """Import deepspeed without its log output, with its CPU backend if there is no GPU. ScaleError if it is not installed."""
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
        # Otherwise DeepSpeed compiles its shared-memory collectives at the first start, which takes most of a minute.
        deepspeed.ops.__compatible_ops__ = defaultdict(bool)
    return deepspeed
