"""Sharding strategies: which weights, gradients and optimizer state each worker holds. One class per strategy.

`tailor.spec.scale` registers them. Another package adds a strategy with a subclass of `Strategy` and an entry point
of the group `tailor.strategies`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tailor.spec.base import Section


class Strategy(Section):
    """Base of all strategies.

    The class variables and properties are what the rules, the plan and training need to know.
    """

    implementation: ClassVar[str]
    """`module:attribute` of the `tailor.train.strategy.Strategy` that trains with it."""
    memory: ClassVar[str]
    """`module:attribute` of the function that estimates the memory of one worker, as in
    `tailor.plan.strategy_memory`.
    """
    precisions: ClassVar[tuple[str, ...]] = ("bf16", "fp32", "fp16")
    """Values of `train.precision` that it supports."""
    shards_optimizer: ClassVar[bool] = False
    """Whether each worker holds only a shard of the optimizer state."""
    package: ClassVar[str | None] = None
    """Name of the module that it imports and that is not one of tailor's own requirements."""

    name: str
    """The strategy."""

    @property
    def label(self) -> str:
        """The strategy's name in messages."""
        return self.name

    @property
    def shards_weights(self) -> bool:
        """Whether each worker holds only a shard of the weights."""
        return False

    @property
    def casts_weights(self) -> bool:
        """Whether all weights, also frozen ones, are stored in the type of `train.precision`."""
        return False


class Ddp(Strategy):
    """Every worker holds all weights, gradients and optimizer state (PyTorch's DistributedDataParallel)."""

    implementation = "tailor.train.strategy.ddp:DataParallel"
    memory = "tailor.plan.strategy_memory:unsharded"

    name: Literal["ddp"]
    """The strategy."""


class Fsdp(Strategy):
    """Weights, gradients and optimizer state are sharded over the workers (PyTorch's FSDP2)."""

    implementation = "tailor.train.strategy.fsdp:FullySharded"
    memory = "tailor.plan.strategy_memory:fsdp"
    precisions = ("bf16", "fp32")
    shards_optimizer = True

    name: Literal["fsdp"]
    """The strategy."""

    offload: bool = False
    """Keep each worker's shard in host memory and run the optimizer on the CPU. Saves GPU memory; steps are much
    slower.
    """

    @property
    def shards_weights(self) -> bool:
        return True


class DeepSpeed(Strategy):
    """DeepSpeed ZeRO (arXiv 1910.02054). The stage decides what is sharded over the workers."""

    implementation = "tailor.train.strategy.deepspeed:Zero"
    memory = "tailor.plan.strategy_memory:deepspeed"
    package = "deepspeed"
    precisions = ("bf16", "fp32")
    shards_optimizer = True

    name: Literal["deepspeed"]
    """The strategy."""

    stage: Literal[1, 2, 3]
    """1 shards the optimizer state, 2 also the gradients, 3 also the weights. A higher stage needs less memory and
    communicates more.
    """

    offload_optimizer: Literal["cpu", "nvme"] | None = None
    """Keep the optimizer state in host memory (`cpu`) or on disk (`nvme`, stage 3 only), and run the optimizer on the
    CPU. Default: on the GPU.
    """

    offload_parameters: Literal["cpu", "nvme"] | None = None
    """Keep weights that are not in use in host memory (`cpu`) or on disk (`nvme`). Stage 3 only. Default: on the GPU.
    """

    nvme_path: str | None = Field(None, min_length=1)
    """Folder on each worker's local disk, for `nvme`."""

    config: str | None = Field(None, min_length=1)
    """Your own DeepSpeed JSON. Its `auto` values are filled in from the recipe; a value that contradicts the recipe
    is an error.
    """

    @property
    def label(self) -> str:
        return f"deepspeed stage {self.stage}" if self.stage else "deepspeed"

    @property
    def shards_weights(self) -> bool:
        return self.stage == 3

    @property
    def casts_weights(self) -> bool:
        return self.stage in (2, 3)
