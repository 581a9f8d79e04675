"""Keeps a group of workers at work: starts it again after a failure, and with more workers when there is room."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tailor.errors import WorkerError
from tailor.onray import placement
from tailor.onray.failures import DeadWorker
from tailor.onray.interrupts import Interrupts

if TYPE_CHECKING:
    from tailor.onray.cluster import Cluster
    from tailor.onray.monitor import Publish, Record
    from tailor.spec.scale import Scale

Once = Callable[[int, dict[str, float], "Publish", Callable[[], bool]], str]
"""Runs one group: (workers, resources of each, publish, whether it should stop) -> how its loop ended."""

GROW_SECONDS = 20.0
"""How often a run with fewer workers than it may have looks for room; half as often after each time in vain."""


def supervise(once: Once, scale: Scale, cluster: Cluster, watch: Watch, *, gpu: bool) -> bool:
    """True when the run finished, False when it stopped as asked.

    A WorkerError is tried again from the last checkpoint, `scale.max_failures` times, but not when it comes
    back at the same step. Every other error is raised.
    """
    failures = groups = 0
    before = in_vain = 0
    stopped_to_grow = False
    last: tuple[int, str] | None = None
    step = 0

    def tell(message: str) -> None:
        watch.publish({"kind": "status", "message": message, "time": time.time()})

    while True:
        watch.interrupts.saves = False  # until the first step of the new group, there is nothing to save
        if watch.interrupts.asked is not None:
            return False
        workers, resources = placement.find_room(scale, own=cluster.own, gpu=gpu, again=groups > 0, tell=tell)
        groups += 1
        in_vain = in_vain + 1 if stopped_to_grow and workers <= before else 0
        before, stopped_to_grow = workers, False
        room = _Room(scale, workers, resources, pause=GROW_SECONDS * 2**in_vain)

        def publish(record: Record, room: _Room = room) -> None:
            nonlocal step
            if record["kind"] == "train":
                step = record["step"]
                room.begin()
            watch.publish(record)

        def stop(room: _Room = room) -> bool:
            return watch.interrupts.asked is not None or room.for_more()

        try:
            ended = once(workers, resources, publish, stop)
        except WorkerError as error:
            failures += 1
            asked = watch.interrupts.asked is not None
            # Of a process that died, whatever it was doing, the next one may live.
            repeats = (step, error.message) == last and not isinstance(error, DeadWorker)
            if not asked and (failures > scale.max_failures or repeats):
                raise
            last = step, error.message
            watch.publish({"kind": "failure", "step": step, "error": error.message, "time": time.time()})
            continue
        if ended == "finished":
            return True
        if watch.interrupts.asked is None:
            stopped_to_grow = True
            tell("there is room for more workers")


class _Room:
    """Whether a run with a range of workers could have more of them now. It is looked for every `pause` seconds of training."""

    def __init__(self, scale: Scale, workers: int, resources: dict[str, float], *, pause: float) -> None:
        self._missing = scale.max_workers - workers
        self._resources, self._pause = resources, pause
        self._together = scale.sequence_parallel
        self._looked: float | None = None

    def begin(self) -> None:
        """The group makes steps: a new start is paid for by then."""
        self._looked = self._looked or time.monotonic()

    def for_more(self) -> bool:
        if not self._missing or self._looked is None or time.monotonic() - self._looked < self._pause:
            return False
        fits = placement.fits(self._together, self._resources)
        self._looked = time.monotonic()
        return fits


@dataclass
class Watch:
    """The driver's side of a run."""

    publish: Publish
    interrupts: Interrupts = field(default_factory=Interrupts)
    attempt: str = ""
    """The name under which this process holds the run's folder."""
    verbose: bool = False
