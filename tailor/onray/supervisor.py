"""Keeps a group of workers at work: starts it again after a failure, and with more workers when there is room."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tailor.errors import ScaleError, WorkerError
from tailor.onray import cluster as clusters

if TYPE_CHECKING:
    from tailor.onray.cluster import Cluster
    from tailor.onray.monitor import Publish, Record
    from tailor.onray.trainer import Watch
    from tailor.spec.scale import Scale

Once = Callable[[int, dict[str, float], "Publish", Callable[[], bool]], str]
"""Runs one group: (workers, resources of each, publish, whether it should stop) -> how its loop ended."""

GROW_SECONDS = 20.0
"""How often a run with fewer workers than it may have looks for room."""


def supervise(once: Once, scale: Scale, cluster: Cluster, watch: Watch, *, gpu: bool) -> bool:
    """True when the run finished, False when it stopped as asked.

    A WorkerError is tried again from the last checkpoint, `scale.max_failures` times, but not when it comes
    back at the same step. Every other error is raised.
    """
    failures = 0
    last: tuple[int, str] | None = None
    step = 0
    while True:
        workers, resources = _place(scale, cluster, gpu=gpu, wait=failures > 0)
        room = _Room(scale, workers, resources)

        def publish(record: Record) -> None:
            nonlocal step
            if record["kind"] == "train":
                step = record["step"]
            watch.publish(record)

        def stop(room: _Room = room) -> bool:
            return watch.interrupts.asked is not None or room.for_more()

        try:
            ended = once(workers, resources, publish, stop)
        except WorkerError as error:
            failures += 1
            if watch.interrupts.asked is not None:
                return False
            if failures > scale.max_failures or (step, error.message) == last:
                raise
            last = step, error.message
            watch.publish({"kind": "failure", "step": step, "error": error.message, "time": time.time()})
            continue
        if ended == "finished" or watch.interrupts.asked is not None:
            return ended == "finished"
        watch.publish({"kind": "status", "message": "there is room for more workers", "time": time.time()})


class _Room:
    """Whether a run with a range of workers could have more of them now."""

    def __init__(self, scale: Scale, workers: int, resources: dict[str, float]) -> None:
        self._missing = scale.most - workers
        self._resources = resources
        self._looked = time.monotonic()

    def for_more(self) -> bool:
        if not self._missing or time.monotonic() - self._looked < GROW_SECONDS:
            return False
        self._looked = time.monotonic()
        return _fits(1, self._resources)


def _fits(workers: int, resources: dict[str, float]) -> bool:
    import ray

    free: dict[str, Any] = ray.available_resources()  # type: ignore[no-untyped-call]
    return all(free.get(name, 0.0) >= workers * amount for name, amount in resources.items())


def _place(scale: Scale, cluster: Cluster, *, gpu: bool, wait: bool) -> tuple[int, dict[str, float]]:
    """How many workers to start, and what each reserves. With a range: as many as there is room for.

    `wait`: for machines that come back, or for what dead workers held. ScaleError when there is no room.
    """
    deadline = time.monotonic() + (clusters.PLACEMENT_SECONDS if wait else 0)
    while True:
        now = clusters.describe(own=cluster.own)
        try:
            return _most(scale, now, gpu=gpu)
        except ScaleError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1.0)


def _most(scale: Scale, cluster: Cluster, *, gpu: bool) -> tuple[int, dict[str, float]]:
    error: ScaleError | None = None
    for workers in range(scale.most, scale.fewest - 1, -1):
        try:
            resources = clusters.resources_per_worker(scale, cluster, workers, gpu=gpu)
        except ScaleError as found:
            error = found
            continue
        # A run of a fixed size waits for others to end; one with a range takes what is free.
        if workers == scale.fewest or cluster.own or _fits(workers, resources):
            return workers, resources
    assert error is not None
    raise error
