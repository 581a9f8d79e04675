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


class Scale(Section):
    """How many workers, on what. The batch is global, so none of this changes the curve.

    Dropout is drawn per micro-batch: with `model.adapter.dropout`, set `train.micro_batch_size` too.
    """

    workers: Annotated[int, Field(ge=1)] | Range = 1
    """Ray Train workers: a number, or `{min: 1, max: 4}` to go on with fewer when machines are lost, with more when they come."""

    gpu: Literal["auto"] | bool = "auto"
    """One GPU per worker; `auto` uses GPUs when the machine or cluster has them."""

    cpus_per_worker: int | None = Field(None, ge=1)
    """CPUs reserved per worker. Default: the machine's CPUs divided by the workers on it (by its GPUs, with GPUs)."""

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
