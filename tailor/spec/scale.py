"""`scale`: how many workers, on what."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tailor.registry import Registry
from tailor.spec.base import Section
from tailor.spec.strategy import Strategy

STRATEGIES: Registry[type[Strategy]] = Registry(
    "tailor.strategies",
    {
        "ddp": "tailor.spec.strategy:Ddp",
        "fsdp": "tailor.spec.strategy:Fsdp",
        "deepspeed": "tailor.spec.strategy:DeepSpeed",
    },
)

_SHORT = (
    "auto",
    *(
        name
        for name in STRATEGIES.names()
        if {key for key, field in STRATEGIES.get(name).model_fields.items() if field.is_required()}
        == {"name"}
    ),
)
"""Names that may stand alone, because they require no other key."""

if TYPE_CHECKING:
    AnyStrategy = Strategy
    ShortStrategy = str
else:
    AnyStrategy = Annotated[reduce(or_, STRATEGIES), Field(discriminator="name")]
    """What a recipe may say: one of the registered classes, told apart by `name`."""
    ShortStrategy = Literal[_SHORT]


class Range(Section):
    """Between `min` and `max` workers, as many as there is room for."""

    min: int = Field(1, ge=1)
    """Fewest workers to train with."""

    max: int = Field(ge=1)
    """Most workers to train with."""


class Scale(Section):
    """How many workers, on what. The batch is global, so none of this changes the curve.

    Dropout is drawn per micro-batch, and per part of it: with `model.adapter.dropout`, set `train.micro_batch_size` too,
    and keep `sequence_parallel`.
    """

    workers: Annotated[int, Field(ge=1)] | Range = 1
    """Ray Train workers: a number, or `{min: 1, max: 4}` to go on with fewer when machines are lost, with more when they come."""

    gpu: Literal["auto"] | bool = "auto"
    """One GPU per worker; `auto` uses GPUs when the machine or cluster has them."""

    strategy: ShortStrategy | AnyStrategy = "auto"
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
    def max_workers(self) -> int:
        """The largest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    @property
    def min_workers(self) -> int:
        """The smallest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers.min
