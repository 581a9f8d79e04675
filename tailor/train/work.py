"""This worker's part of a batch, and what is added up of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist

from tailor.batches import Batch, Batches
from tailor.methods import Summed
from tailor.methods.base import Work
from tailor.models.documents import Collator
from tailor.train.session import Session

STOPPING = "stopping"
"""Name of a sum: how many workers were asked to stop."""


def read_share(session: Session, batches: Batches, collator: Collator, batch: Batch) -> Iterator[Work]:
    """This worker's micro-batches of a batch, or its part of those of its group. Every worker gets equally many of each kind.

    A worker without one computes a small one that doesn't count, to stay in step.
    """
    method, before = session.method, 0
    rank, world = group_of(session)
    for parts in method.parts(batches, batch, session.plan):
        if not parts:
            continue
        smallest = min(range(parts[0].start, parts[-1].stop), key=lambda row: batches.length(batch[row]))
        for at in range(rank, -(-len(parts) // world) * world, world):
            counts = at < len(parts)
            part = parts[at] if counts else slice(smallest, smallest + 1)
            read = method.read(collator, batch, part)
            yield Work(before + at, read, counts, batches.tokens(batch[part]) if counts else 0)
        before += len(parts)


def group_of(session: Session) -> tuple[int, int]:
    """Which of the groups that share a batch this worker is in, and how many there are. Mostly it is alone in one."""
    together = session.plan.sequence_parallel
    return session.host.rank // together, session.host.world // together


def survey(session: Session, work: Iterable[Work], units: int) -> float:
    """Total of the method's surveys over all workers, divided by the batch's units. 0 where it asks for none."""
    if not session.method.surveys:
        return 0.0
    totals = Totals(session.device)
    for one in work:
        with torch.no_grad(), session.autocast():
            part = session.strategy.forward(session.method.survey, one.batch.to(session.device))
            totals.add(Summed(part), one.counts)
    return totals.over_workers(session.host.world)["loss"] / units


def asked_to_stop(session: Session) -> bool:
    """Whether any worker was asked to stop. All of them call this together."""
    asked = Totals(session.device)
    asked.add_number(STOPPING, session.host.stopping())
    return asked.over_workers(session.host.world)[STOPPING] > 0


class Totals:
    """The loss and the statistics of micro-batches, added up by name."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, summed: Summed, counts: bool) -> None:
        """Add a micro-batch, as zeros where it does not count."""
        for name, value in {"loss": summed.loss, **summed.statistics}.items():
            # Some accelerators have no float64.
            dtype = torch.float64 if self._device.type == "cpu" else torch.float32
            own = value.detach().to(self._device, dtype)
            self._sums[name] = self._sums.get(name, torch.zeros_like(own)) + own * float(counts)

    def add_number(self, name: str, value: float) -> None:
        """Add a number of this worker's own."""
        kind = torch.float64 if self._device.type == "cpu" else torch.float32
        self._sums[name] = torch.tensor(float(value), dtype=kind, device=self._device)

    def over_workers(self, world: int) -> dict[str, float]:
        """The sums of all workers, each of which calls this with the same names."""
        names = sorted(self._sums)
        values = torch.stack([self._sums[name] for name in names])
        if world > 1:
            dist.all_reduce(values)
        return dict(zip(names, values.tolist(), strict=True))
