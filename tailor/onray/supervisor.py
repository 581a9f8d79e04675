"""Supervises the worker group of a run: restarts it after failures, and with more workers when there is room."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tailor.errors import WorkerError
from tailor.onray import placement
from tailor.onray.failures import DeadWorker, Preempted
from tailor.onray.interrupts import Interrupts

if TYPE_CHECKING:
    from tailor.onray.cluster import Cluster
    from tailor.onray.monitor import Publish, Record
    from tailor.spec.scale import Scale

RunGroup = Callable[[int, dict[str, float], "Publish", Callable[[], bool]], str]
"""Runs one worker group: (number of workers, resources of each, publish, stop requested?) -> how its loop ended."""

GROW_SECONDS = 20.0
"""How often a run below `scale.workers.max` checks for room. A restart that gained no worker doubles the interval."""


def supervise(
    run_group: RunGroup, scale: Scale, cluster: Cluster, driver: DriverContext, *, gpu: bool
) -> bool:
    """Run worker groups until the run ends. True when it finished, False when it stopped as requested.

    After a WorkerError the run restarts from the last checkpoint, up to `scale.max_failures` times. It does not restart
    when the same error occurs again at the same step. All other errors are raised. At a preemption notice the workers
    save a checkpoint and stop, and the run restarts on the other nodes; preemptions are recorded as failures, but do not
    count.
    """
    failures = groups = 0
    previous_workers = failed_growths = 0
    stopped_to_grow = False
    last_failure: tuple[int, str] | None = None
    step = 0
    preempted: str | None = None

    def report(message: str) -> None:
        driver.publish({"kind": "status", "message": message, "time": time.time()})

    def report_failure(error: str) -> None:
        driver.publish({"kind": "failure", "step": step, "error": error, "time": time.time()})

    while True:
        driver.interrupts.can_save = False  # until the first step of the new group, there is nothing to save
        if driver.interrupts.requested is not None:
            return False
        workers, resources = placement.find_room(
            scale, is_local=cluster.is_local, gpu=gpu, restarted=groups > 0, report=report
        )
        groups += 1
        failed_growths = failed_growths + 1 if stopped_to_grow and workers <= previous_workers else 0
        previous_workers, stopped_to_grow, preempted = workers, False, None
        growth = _GrowthCheck(scale, workers, resources, interval=GROW_SECONDS * 2**failed_growths)

        def publish(record: Record, growth: _GrowthCheck = growth) -> None:
            nonlocal step, preempted
            preempted = record.get("preempted", preempted)
            if record["kind"] == "train":
                step = record["step"]
                growth.start()
            driver.publish(record)

        def stop(growth: _GrowthCheck = growth) -> bool:
            return driver.interrupts.requested is not None or growth.has_room()

        try:
            ended = run_group(workers, resources, publish, stop)
        except WorkerError as error:
            requested = driver.interrupts.requested is not None
            if preempted is not None or isinstance(error, Preempted):
                report_failure(error.message)
                continue
            failures += 1
            # A process that died twice at the same step may have been killed from outside both times.
            repeats = (step, error.message) == last_failure and not isinstance(error, DeadWorker)
            if not requested and (failures > scale.max_failures or repeats):
                raise
            last_failure = step, error.message
            report_failure(error.message)
            continue
        if ended == "finished":
            return True
        if driver.interrupts.requested is not None:
            continue
        if preempted is not None:
            report_failure(f"{preempted} is being preempted")
        else:
            stopped_to_grow = True
            report("restarting with more workers: the cluster has room for them")


class _GrowthCheck:
    """Checks every `interval` seconds of training whether the cluster has room for more workers."""

    def __init__(self, scale: Scale, workers: int, resources: dict[str, float], *, interval: float) -> None:
        self._missing = scale.max_workers - workers
        self._resources, self._interval = resources, interval
        # Workers are added in groups that share sequences.
        self._group_size = scale.sequence_parallel
        self._last_check: float | None = None

    def start(self) -> None:
        """Start the interval at the first step, so that a restart never comes before the group has trained."""
        self._last_check = self._last_check or time.monotonic()

    def has_room(self) -> bool:
        """Whether there is room for more workers. False without a check while the interval has not passed."""
        if (
            not self._missing
            or self._last_check is None
            or time.monotonic() - self._last_check < self._interval
        ):
            return False
        fits = placement.fits(self._group_size, self._resources)
        self._last_check = time.monotonic()
        return fits


@dataclass
class DriverContext:
    """What the driver of a run passes to training."""

    publish: Publish
    interrupts: Interrupts = field(default_factory=Interrupts)
    attempt: str = ""
    """Name under which this process has locked the run folder."""
    verbose: bool = False
