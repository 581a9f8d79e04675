"""Strategies: how the workers hold a model's weights, gradients and optimizer state. One class per strategy.

`tailor.spec.scale` registers them. Another package derives a class of its own from `Strategy` and registers it as an
entry point of the group `tailor.strategies`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tailor.spec.base import Section


class Strategy(Section):
    """What all strategies have, and what the rules, the plan and training ask of one."""

    implementation: ClassVar[str]
    """`module:attribute` of the class that trains, a `tailor.train.strategy.Strategy`."""
    memory: ClassVar[str]
    """`module:attribute` of the function that forecasts one worker's memory, as in `tailor.plan.strategy_memory`."""
    precisions: ClassVar[tuple[str, ...]] = ("bf16", "fp32", "fp16")
    """Values of `train.precision` that it computes in."""
    shards_optimizer: ClassVar[bool] = False
    """Whether each worker holds a part of the optimizer's state, whatever else is sharded."""

    name: str
    """The strategy."""

    @property
    def label(self) -> str:
        """The strategy in messages."""
        return self.name

    @property
    def shards_weights(self) -> bool:
        """Whether each worker holds a part of the weights."""
        return False

    @property
    def casts_weights(self) -> bool:
        """Whether all weights, frozen ones too, are held in the type of `train.precision`."""
        return False


class Ddp(Strategy):
    """Every worker holds all weights, gradients and optimizer state (DistributedDataParallel)."""

    implementation = "tailor.train.strategy.ddp:DataParallel"
    memory = "tailor.plan.strategy_memory:unsharded"

    name: Literal["ddp"]
    """The strategy."""


class Fsdp(Strategy):
    """Weights, gradients and optimizer state are shared out over the workers (PyTorch's FSDP2)."""

    implementation = "tailor.train.strategy.fsdp:FullySharded"
    memory = "tailor.plan.strategy_memory:fsdp"
    precisions = ("bf16", "fp32")
    shards_optimizer = True

    name: Literal["fsdp"]
    """The strategy."""

    offload: bool = False
    """Keep each worker's share in host memory, and make the optimizer's step there."""

    @property
    def shards_weights(self) -> bool:
        return True


class DeepSpeed(Strategy):
    """DeepSpeed's ZeRO (arXiv 1910.02054): what is shared out over the workers depends on the stage."""

    implementation = "tailor.train.strategy.deepspeed:Zero"
    memory = "tailor.plan.strategy_memory:deepspeed"
    precisions = ("bf16", "fp32")
    shards_optimizer = True

    name: Literal["deepspeed"]
    """The strategy."""

    stage: Literal[1, 2, 3]
    """1 shares the optimizer's state out, 2 also the gradients, 3 also the weights."""

    offload_optimizer: Literal["cpu", "nvme"] | None = None
    """Keep the optimizer's state (and make its step) in host memory, or on a disk (stage 3)."""

    offload_parameters: Literal["cpu", "nvme"] | None = None
    """Keep the weights in host memory, or on a disk, while they are not computed with (stage 3)."""

    nvme_path: str | None = Field(None, min_length=1)
    """Folder on each worker's disk for `nvme`."""

    config: str | None = Field(None, min_length=1)
    """Your own DeepSpeed JSON: `auto` values are filled, a value that says otherwise than this recipe is refused."""

    @property
    def label(self) -> str:
        return f"deepspeed stage {self.stage}" if self.stage else "deepspeed"

    @property
    def shards_weights(self) -> bool:
        return self.stage == 3

    @property
    def casts_weights(self) -> bool:
        return self.stage in (2, 3)
