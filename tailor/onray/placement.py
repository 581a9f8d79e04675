"""Room for a run's workers on a cluster: what each reserves, and the wait for machines that come later."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tailor.errors import ScaleError
from tailor.onray import autoscaler
from tailor.onray.cluster import Cluster, Node, accelerator, count, describe, kind
from tailor.runs.words import duration

if TYPE_CHECKING:
    from tailor.spec.scale import Scale

FIT_SECONDS = 1.5
"""A reservation for which there is room is made in less."""

ASK_SECONDS = 10.0
"""How long one reservation waits for machines: an autoscaler looks every 5 s for what does."""

SETTLE_SECONDS = 10.0
"""After so long, what the workers of the group before held is free again, where their machines still are there."""

Tell = Callable[[str], None]
"""Says to the user what the run waits for."""


def resources_per_worker(scale: Scale, cluster: Cluster, workers: int, *, gpu: bool) -> dict[str, float]:
    """What Ray reserves for each of so many workers. ScaleError, with what was asked for and what there is, when it cannot be.

    On a Ray of this machine's own, more workers than CPUs share them. On a cluster they are refused.
    """
    were = "was" if workers == 1 else "were"
    nodes = cluster.of_kind(scale.accelerator if gpu else None)
    gpus = sum(node.gpus for node in nodes)
    if gpu and workers > gpus:
        one = f"one {scale.accelerator}" if scale.accelerator else "one GPU"
        raise ScaleError(
            f"{count(workers, 'worker')} with {one} each {were} asked for, but {cluster.has}",
            hint=_fewer(int(gpus), scale),
        )
    usable = [node for node in nodes if node.cpus >= 1 and (node.gpus >= 1 or not gpu)]
    cpus = _cpus_per_worker(scale, cluster, usable, gpu)
    room = sum(int(min(node.cpus // cpus, node.gpus if gpu else math.inf)) for node in usable)
    if room < workers:
        raise ScaleError(
            f"{count(workers, 'worker')} with {count(cpus, 'CPU')} each {were} asked for, "
            f"but {cluster.has}, which is room for {room}",
            hint="lower scale.workers or scale.cpus_per_worker",
        )
    return {"CPU": cpus, "GPU": 1.0, **kind(scale.accelerator)} if gpu else {"CPU": cpus}


def _fewer(gpus: int, scale: Scale) -> str:
    if gpus:
        return f"set scale.workers: {gpus} or less, or scale.gpu: false"
    if scale.accelerator is not None:
        return "set scale.accelerator to a kind that is there, or leave it away"
    return "set scale.gpu: auto, or run where there are GPUs"


class TakenError(ScaleError):
    """There are the CPUs and GPUs that workers need, but others use them now."""


def taken(cluster: Cluster, workers: int, resources: dict[str, float]) -> TakenError:
    """The error of workers that found no room in time."""
    gpu = accelerator(resources) or "GPU"
    wanted = count(resources["CPU"], "CPU") + (f" and 1 {gpu}" if "GPU" in resources else "")
    return TakenError(
        f"{count(workers, 'worker')} with {wanted} each found no room: {cluster.has}, and others use them",
        hint="wait for the cluster's other jobs to end, or lower scale.workers",
    )


def fits(workers: int, resources: dict[str, float], seconds: float = FIT_SECONDS) -> bool:
    """Whether there is room for so many workers on machines that answer, now or within `seconds`.

    It is tried with a reservation: sums of what is free don't tell that it lies on one machine, and a machine
    that is lost counts as alive for another 15 s. To an autoscaler a reservation that waits is a wish for machines.
    """
    from ray.util import placement_group, remove_placement_group

    reservation = placement_group([resources] * workers)
    try:
        deadline = time.monotonic() + seconds
        # In slices, between which a signal is seen.
        while not reservation.wait(FIT_SECONDS):
            if time.monotonic() >= deadline:
                return False
        return True
    finally:
        remove_placement_group(reservation)


class Wait:
    """One wait for machines, of at most `scale.placement_timeout`. What the cluster lacks is asked for."""

    def __init__(self, scale: Scale, tell: Tell, *, again: bool = False) -> None:
        """`again`: after another group, when machines that were lost may come back to any cluster."""
        self._scale, self._tell, self._again = scale, tell, again
        self._began = time.monotonic()
        self._asked: dict[str, float] = {}
        self._workers = scale.min_workers
        self.told = False
        """Whether the user knows of it."""

    @property
    def seconds(self) -> float:
        """How long it lasts so far."""
        return time.monotonic() - self._began

    def after(self, error: ScaleError, *, gpu: bool, taken: dict[str, float] | None = None) -> None:
        """Wait for some seconds, after a look at the cluster that ended with `error`.

        `taken`: what a worker needs, where the cluster has it and others use it. Raises the error when the time is
        over, and at once when the cluster lacks what no autoscaler of its own can bring.
        """
        timeout = self._scale.placement_timeout
        if self.seconds >= timeout:
            raise self._too_late(error) if timeout else error
        bundle = taken or asked_for(self._scale, gpu=gpu)
        if taken is None and not self._again and bundle != self._asked:
            self._asked, self._workers = bundle, self._promised(bundle, error)
            self.told = True
            self._tell(
                f"waiting up to {duration(timeout)} for machines of the cluster's autoscaler: {error.message}"
            )
        if not self.told and self.seconds > SETTLE_SECONDS:
            self.told = True
            self._tell(f"waiting for room: {error.message}")
        fits(self._workers, bundle, max(FIT_SECONDS, min(ASK_SECONDS, timeout - self.seconds)))
        time.sleep(1.0)

    def _promised(self, bundle: dict[str, float], error: ScaleError) -> int:
        """For how many workers the autoscaler can bring machines. Raises `error` where not for the fewest."""
        for workers in sorted({self._scale.max_workers, self._scale.min_workers}, reverse=True):
            if autoscaler.can_bring(bundle, workers):
                return workers
        raise error

    def _too_late(self, error: ScaleError) -> ScaleError:
        waited = duration(self.seconds)
        if isinstance(error, TakenError):
            return TakenError(
                f"no machines became free within {waited}: {error.message}",
                hint="wait for the cluster's other jobs to end, raise scale.placement_timeout, or lower scale.workers",
            )
        return ScaleError(
            f"no machines came within {waited}: {error.message}",
            hint="raise scale.placement_timeout; `ray status` says what machines wait for",
        )


def await_machines(scale: Scale, cluster: Cluster, tell: Tell) -> Cluster:
    """The cluster once it has what the fewest workers need, whoever uses it now. A Ray of this machine's own: as it is.

    ScaleError when the machines don't come in time, or never can.
    """
    if cluster.own:
        return cluster
    wait = Wait(scale, tell)
    while True:
        gpu = _uses_gpu(scale, cluster)
        try:
            resources_per_worker(scale, cluster, scale.min_workers, gpu=gpu)
        except ScaleError as error:
            wait.after(error, gpu=gpu)
        else:
            if wait.told:
                tell(f"the machines are there: {cluster.has}")
            return cluster
        cluster = describe(own=False)


def find_room(scale: Scale, *, own: bool, gpu: bool, again: bool, tell: Tell) -> tuple[int, dict[str, float]]:
    """How many workers to start, and what each reserves. With a range: as many as there is room for.

    `again`: after another group, when machines may come back and what its workers held may still be taken.
    Waits for machines and for other jobs to end. ScaleError when there is no room in time, or can never be.
    """
    wait = Wait(scale, tell, again=again)
    while True:
        cluster = describe(own=own)
        fewest = scale.max_workers if again and wait.seconds < SETTLE_SECONDS else scale.min_workers
        error: ScaleError | None = None
        used: dict[str, float] | None = None
        for workers in range(scale.max_workers, fewest - 1, -scale.sequence_parallel):
            try:
                resources = resources_per_worker(scale, cluster, workers, gpu=gpu)
            except ScaleError as found:
                error, used = found, None
                continue
            if own or fits(workers, resources):
                return workers, resources
            error, used = taken(cluster, workers, resources), resources
        assert error is not None
        if own:
            raise error
        wait.after(error, gpu=gpu, taken=used)


def _uses_gpu(scale: Scale, cluster: Cluster) -> bool:
    """Whether workers will have a GPU each. With `auto` it is what the cluster's machines have now."""
    asked = scale.gpu is True or scale.accelerator is not None
    return scale.gpu is not False and (asked or cluster.gpus >= 1)


def asked_for(scale: Scale, *, gpu: bool) -> dict[str, float]:
    """What a worker needs of a machine that is not there yet: CPUs that are not declared follow from the machine."""
    cpus = float(scale.cpus_per_worker or 1)
    return {"CPU": cpus, "GPU": 1.0, **kind(scale.accelerator)} if gpu else {"CPU": cpus}


def _cpus_per_worker(scale: Scale, cluster: Cluster, usable: list[Node], gpu: bool) -> float:
    if scale.cpus_per_worker is not None:
        return float(scale.cpus_per_worker)
    if not usable:
        return 1.0
    if gpu:
        return max(1.0, float(min(node.cpus // node.gpus for node in usable)))
    # The same for every size that a range allows, so that workers that are there leave room for more.
    share = min(node.cpus for node in usable) / math.ceil(scale.max_workers / len(usable))
    if share >= 1:
        return float(int(share))
    # Ray counts CPUs in ten-thousandths; rounding down leaves room for all.
    return math.floor(share * 1e4) / 1e4 if cluster.own else 1.0
