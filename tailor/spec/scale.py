"""`scale`: how many workers, on what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tailor.spec.base import Section


class Range(Section):
    """Between `min` and `max` workers, as many as there is room for."""

    min: int = Field(1, ge=1)
    """Fewest workers to train with."""

    max: int = Field(ge=1)
    """Most workers to train with."""


class Ddp(Section):
    """Every worker holds all weights, gradients and optimizer state (DistributedDataParallel)."""

    name: Literal["ddp"]
    """The strategy."""


class Fsdp(Section):
    """Weights, gradients and optimizer state are shared out over the workers (PyTorch's FSDP2)."""

    name: Literal["fsdp"]
    """The strategy."""

    offload: bool = False
    """Keep each worker's share in host memory, and make the optimizer's step there."""


class DeepSpeed(Section):
    """DeepSpeed's ZeRO (arXiv 1910.02054): what is shared out over the workers depends on the stage."""

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


Strategy = Ddp | Fsdp | DeepSpeed
STRATEGIES: tuple[type[Section], ...] = (Ddp, Fsdp, DeepSpeed)


class Scale(Section):
    """How many workers, on what. The batch is global, so none of this changes the curve.

    Dropout is drawn per micro-batch, and per part of it: with `model.adapter.dropout`, set `train.micro_batch_size` too,
    and keep `sequence_parallel`.
    """

    workers: Annotated[int, Field(ge=1)] | Range = 1
    """Ray Train workers: a number, or `{min: 1, max: 4}` to go on with fewer when machines are lost, with more when they come."""

    gpu: Literal["auto"] | bool = "auto"
    """One GPU per worker; `auto` uses GPUs when the machine or cluster has them."""

    strategy: Literal["auto", "ddp", "fsdp"] | Annotated[Strategy, Field(discriminator="name")] = "auto"
    """What each worker holds: all of it (ddp) or a share (fsdp, deepspeed). `auto`: ddp where that fits, else fsdp."""

    accelerator: str | None = Field(None, min_length=1)
    """The kind of GPU, as Ray names it, such as `A100` or `H100`, where a cluster has several. Default: any."""

    placement: Literal["pack", "spread"] = "pack"
    """Workers on few machines (`pack`), or on as many as there are (`spread`)."""

    sequence_parallel: int = Field(1, ge=1)
    """Workers that hold each sequence together, each a part of its tokens (Ulysses). It must divide the attention heads.

    So a group of workers trains on sequences that fit none of them. Methods sft and pretrain.
    """

    cpus_per_worker: int | None = Field(None, ge=1)
    """CPUs reserved per worker. Default: the machine's CPUs divided by the workers on it (by its GPUs, with GPUs)."""

    placement_timeout: int = Field(900, ge=0)
    """Seconds that a run waits for machines on a cluster: those that its autoscaler brings, that others use, that were lost.

    The default is what Kubernetes gives a node to come. What the cluster lacks and no autoscaler brings is refused at once.
    """

    max_failures: int = Field(3, ge=0)
    """How often workers that died or raised are started again, from the last checkpoint. A mistake is never tried again."""

    address: str | None = None
    """Ray cluster to join. Default: `RAY_ADDRESS`, or the cluster of the Ray job that runs the command.

    Without one, a single worker runs in the command's own process and several in a Ray of this machine's own.
    """

    @property
    def most(self) -> int:
        """The largest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    @property
    def fewest(self) -> int:
        """The smallest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers.min
