"""`scale`: the number of workers, their hardware, and how they share the model."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tailor.registry import Registry, check_section
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


def strategy_class(name: str) -> type[Strategy]:
    """The section of a registered strategy. Raises ExtensionError when another package registers something else."""
    found = STRATEGIES.get(name)
    check_section(STRATEGIES.group, name, found, Strategy, ("implementation", "memory"))
    return found


_SHORT = (
    "auto",
    *(
        name
        for name in STRATEGIES.names()
        if {key for key, field in strategy_class(name).model_fields.items() if field.is_required()}
        == {"name"}
    ),
)
"""Strategies that can be written as a name alone, because they require no other key."""

if TYPE_CHECKING:
    AnyStrategy = Strategy
    ShortStrategy = str
else:
    AnyStrategy = Annotated[reduce(or_, map(strategy_class, STRATEGIES.names())), Field(discriminator="name")]
    """One of the registered strategies, chosen by `name`."""
    ShortStrategy = Literal[_SHORT]


class Range(Section):
    """A range of workers: as many as the cluster has room for, between `min` and `max`."""

    min: int = Field(1, ge=1)
    """Smallest number of workers that the run trains with."""

    max: int = Field(ge=1)
    """Largest number of workers that the run trains with."""


class Scale(Section):
    """The number of workers, their hardware, and how they share the model.

    The batch size is global, so none of this changes the loss curve. Exception: dropout is drawn per micro-batch.
    With `model.adapter.dropout`, also set `train.micro_batch_size` and keep `sequence_parallel` to get the same
    curve.
    """

    workers: Annotated[int, Field(ge=1)] | Range = 1
    """Number of workers (training processes), or `{min: 1, max: 4}` for an elastic run: it continues with fewer
    workers when machines are lost and with more when machines join.
    """

    gpu: Literal["auto"] | bool = "auto"
    """Train on GPUs, one per worker. `auto` uses GPUs if the machine or cluster has any; `false` trains on CPU."""

    strategy: ShortStrategy | AnyStrategy = "auto"
    """How the workers share the model: each worker holds all of it (`ddp`) or a shard (`fsdp`, `deepspeed`). `auto`
    chooses ddp if the model fits, else fsdp.
    """

    accelerator: str | None = Field(None, min_length=1)
    """Type of GPU as Ray names it, such as `A100` or `H100`, for clusters with several types. Default: any."""

    placement: Literal["pack", "spread"] = "pack"
    """`pack` puts the workers on as few machines as possible, `spread` on as many as possible. Change it only if you
    know the network.
    """

    sequence_parallel: int = Field(1, ge=1)
    """Sequence parallelism (Ulysses): this many workers split each sequence between them. It must divide the number
    of attention heads and the number of workers. Raise it when one sequence does not fit on one GPU. Only for methods
    with a loss per token (sft, pretrain).
    """

    cpus_per_worker: int | None = Field(None, ge=1)
    """CPUs reserved for each worker. Default: the machine's CPUs divided by its GPUs, or without GPUs by the workers
    on it.
    """

    placement_timeout: int = Field(900, ge=0)
    """Seconds to wait for machines of the cluster: machines that the autoscaler starts, that other jobs use, or that
    were lost. A request that the cluster can never meet fails at once.

    The default of 900 is what Kubernetes' cluster autoscaler allows for a new node.
    """

    max_failures: int = Field(3, ge=0)
    """How often the run restarts from the last checkpoint after a worker died or raised an exception. Errors in the
    recipe, data or model are not retried.
    """

    address: str | None = None
    """Address of the Ray cluster. Default: `RAY_ADDRESS`, or the cluster of the Ray job that runs the command.

    Without a cluster, a single worker runs in the command's own process; several workers run in a Ray instance on
    this machine.
    """

    @property
    def max_workers(self) -> int:
        """The largest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    @property
    def min_workers(self) -> int:
        """The smallest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers.min
