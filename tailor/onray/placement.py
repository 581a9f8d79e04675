"""Placement of a run's workers on a cluster: what each worker reserves, and the wait for free or pending nodes.

A pending node is one that the cluster's autoscaler can add, or a lost one that may come back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tailor.errors import ScaleError
from tailor.onray import autoscaler
from tailor.onray.cluster import (
    Cluster,
    Node,
    accelerator_resource,
    accelerator_type,
    count,
    current_cluster,
)
from tailor.runs.words import duration

if TYPE_CHECKING:
    from tailor.spec.scale import Scale

FIT_SECONDS = 1.5
"""Ray grants a reservation for which there is room in less time."""

RESERVATION_SECONDS = 10.0
"""How long one reservation waits for nodes. The autoscaler looks for pending reservations every 5 s."""

SETTLE_SECONDS = 10.0
"""After this time, the resources of a previous worker group are free again, unless their nodes are lost."""

Report = Callable[[str], None]
"""Shows a status line to the user."""


def resources_per_worker(scale: Scale, cluster: Cluster, workers: int, *, gpu: bool) -> dict[str, float]:
    """The Ray resources that each of `workers` workers reserves. ScaleError when the cluster is too small for them.

    On a local Ray instance, more workers than CPUs share the CPUs. On a cluster, a worker needs at least one CPU.
    """
    do = "does" if workers == 1 else "do"
    nodes = cluster.nodes_with(scale.accelerator if gpu else None)
    gpus = sum(node.gpus for node in nodes)
    if gpu and workers > gpus:
        raise ScaleError(
            f"{count(workers, 'worker')} with 1 {scale.accelerator or 'GPU'} each {do} not fit on {cluster.name}, "
            f"which has {cluster.resources}",
            hint=_fewer_gpus(int(gpus), scale),
        )
    usable = [node for node in nodes if node.cpus >= 1 and (node.gpus >= 1 or not gpu)]
    cpus = _cpus_per_worker(scale, cluster, usable, gpu)
    room = sum(int(min(node.cpus // cpus, node.gpus if gpu else math.inf)) for node in usable)
    if room < workers:
        raise ScaleError(
            f"{count(workers, 'worker')} with {count(cpus, 'CPU')} each {do} not fit on {cluster.name}, "
            f"which has {cluster.resources}: room for {count(room, 'worker')}",
            hint="lower scale.workers or scale.cpus_per_worker",
        )
    return {"CPU": cpus, "GPU": 1.0, **accelerator_resource(scale.accelerator)} if gpu else {"CPU": cpus}


def _fewer_gpus(gpus: int, scale: Scale) -> str:
    """The hint for a cluster with only `gpus` suitable GPUs."""
    if gpus:
        return f"set scale.workers: {gpus} or less, or scale.gpu: false"
    if scale.accelerator is not None:
        return "set scale.accelerator to a GPU type that the cluster has, or remove it"
    return "set scale.gpu: auto, or run on a machine with GPUs"


class BusyError(ScaleError):
    """The cluster has the CPUs and GPUs that the workers need, but other jobs use them now."""


def busy_error(cluster: Cluster, workers: int, resources: dict[str, float]) -> BusyError:
    """The error for workers that have no room because of other jobs."""
    gpu = accelerator_type(resources) or "GPU"
    needed = count(resources["CPU"], "CPU") + (f" and 1 {gpu}" if "GPU" in resources else "")
    do = "does" if workers == 1 else "do"
    return BusyError(
        f"{count(workers, 'worker')} with {needed} each {do} not fit beside the other jobs on {cluster.name}, "
        f"which has {cluster.resources}",
        hint="wait for the other jobs to end, or lower scale.workers",
    )


def fits(workers: int, resources: dict[str, float], seconds: float = FIT_SECONDS) -> bool:
    """Whether there is room for `workers` workers, now or within `seconds`.

    It makes a reservation (a placement group) and removes it again. Sums of free resources are not enough: they do not
    show whether the resources of one worker are on one node, and Ray counts a lost node as alive for another 15 s. The
    autoscaler adds nodes for a reservation that waits.
    """
    from ray.util import placement_group, remove_placement_group

    reservation = placement_group([resources] * workers)
    try:
        deadline = time.monotonic() + seconds
        # In short waits, so that Python handles signals in between.
        while not reservation.wait(FIT_SECONDS):
            if time.monotonic() >= deadline:
                return False
        return True
    finally:
        remove_placement_group(reservation)


class NodeWait:
    """One wait for nodes, of at most `scale.placement_timeout`. Requests the missing nodes from the autoscaler."""

    def __init__(self, scale: Scale, report: Report, *, restarted: bool = False) -> None:
        """`restarted`: the run had workers before, so lost nodes may come back even without an autoscaler."""
        self._scale, self._report, self._restarted = scale, report, restarted
        self._began = time.monotonic()
        self._requested: dict[str, float] = {}
        self._workers = scale.min_workers
        self.reported = False
        """Whether the user has been informed that the run waits."""

    @property
    def seconds(self) -> float:
        """Duration of the wait so far."""
        return time.monotonic() - self._began

    def after(self, error: ScaleError, *, gpu: bool, in_use: dict[str, float] | None = None) -> None:
        """Wait for some seconds, after an attempt to find room that failed with `error`.

        `in_use`: the resources of one worker, if the cluster has them but other jobs use them. Raises the error after
        `scale.placement_timeout`, and at once if the cluster is too small and its autoscaler cannot add enough nodes.
        """
        timeout = self._scale.placement_timeout
        if self.seconds >= timeout:
            raise self._timeout_error(error) if timeout else error
        bundle = in_use or pending_resources(self._scale, gpu=gpu)
        if in_use is None and not self._restarted and bundle != self._requested:
            self._requested, self._workers = bundle, self._available_workers(bundle, error)
            self.reported = True
            self._report(f"waiting up to {duration(timeout)} for pending nodes: {error.message}")
        if not self.reported and self.seconds > SETTLE_SECONDS:
            self.reported = True
            missing = "free resources" if in_use is not None else "lost nodes"
            self._report(f"waiting up to {duration(timeout)} for {missing}: {error.message}")
        fits(self._workers, bundle, max(FIT_SECONDS, min(RESERVATION_SECONDS, timeout - self.seconds)))
        time.sleep(1.0)

    def _available_workers(self, bundle: dict[str, float], error: ScaleError) -> int:
        """`max_workers` or, if the autoscaler cannot provide nodes for them, `min_workers`. Raises `error` if for neither."""
        for workers in sorted({self._scale.max_workers, self._scale.min_workers}, reverse=True):
            if autoscaler.can_provide(bundle, workers):
                return workers
        raise error

    def _timeout_error(self, error: ScaleError) -> ScaleError:
        waited = duration(self.seconds)
        if isinstance(error, BusyError):
            return BusyError(
                f"no resources became free within {waited}: {error.message}",
                hint="wait for the other jobs to end, raise scale.placement_timeout, or lower scale.workers",
            )
        return ScaleError(
            f"the pending nodes did not start within {waited}: {error.message}",
            hint="raise scale.placement_timeout; `ray status` shows why nodes are pending",
        )


def wait_for_nodes(scale: Scale, cluster: Cluster, report: Report) -> Cluster:
    """Wait until the cluster is large enough for `scale.min_workers`, including resources that other jobs use now.

    Returns the grown cluster; a local Ray instance is returned as it is. ScaleError when the nodes do not start in
    time, or when the autoscaler cannot provide them.
    """
    if cluster.is_local:
        return cluster
    wait = NodeWait(scale, report)
    while True:
        gpu = _uses_gpu(scale, cluster)
        try:
            resources_per_worker(scale, cluster, scale.min_workers, gpu=gpu)
        except ScaleError as error:
            wait.after(error, gpu=gpu)
        else:
            if wait.reported:
                report(f"the nodes are ready: {cluster.name} has {cluster.resources}")
            return cluster
        cluster = current_cluster(is_local=False)


def find_room(
    scale: Scale, *, is_local: bool, gpu: bool, restarted: bool, report: Report
) -> tuple[int, dict[str, float]]:
    """(number of workers to start, Ray resources of each). With a range of workers, as many as there is room for.

    `restarted`: the run had workers before, so lost nodes may come back, and the resources of the previous workers may
    still be in use. Waits for pending nodes and for other jobs to end. ScaleError when there is no room within
    `scale.placement_timeout`, or when there can never be.
    """
    wait = NodeWait(scale, report, restarted=restarted)
    while True:
        cluster = current_cluster(is_local=is_local)
        settling = restarted and wait.seconds < SETTLE_SECONDS
        error: ScaleError | None = None
        in_use: dict[str, float] | None = None
        for workers in range(scale.max_workers, scale.min_workers - 1, -scale.sequence_parallel):
            try:
                resources = resources_per_worker(scale, cluster, workers, gpu=gpu)
            except ScaleError as too_small:
                error, in_use = too_small, None
                continue
            if is_local or fits(workers, resources):
                return workers, resources
            error, in_use = busy_error(cluster, workers, resources), resources
            if settling:
                break
        assert error is not None
        if is_local:
            raise error
        wait.after(error, gpu=gpu, in_use=in_use)


def _uses_gpu(scale: Scale, cluster: Cluster) -> bool:
    """Whether each worker will have a GPU. With `scale.gpu: auto` it depends on whether the cluster has GPUs now."""
    required = scale.gpu is True or scale.accelerator is not None
    return scale.gpu is not False and (required or cluster.gpus >= 1)


def pending_resources(scale: Scale, *, gpu: bool) -> dict[str, float]:
    """Ray resources of a worker on a pending node.

    Without `scale.cpus_per_worker` it is one CPU: the final number depends on the node, which is not known yet.
    """
    cpus = float(scale.cpus_per_worker or 1)
    return {"CPU": cpus, "GPU": 1.0, **accelerator_resource(scale.accelerator)} if gpu else {"CPU": cpus}


def _cpus_per_worker(scale: Scale, cluster: Cluster, usable: list[Node], gpu: bool) -> float:
    """CPUs of a worker: `scale.cpus_per_worker`, else a node's CPUs divided by its GPUs or workers."""
    if scale.cpus_per_worker is not None:
        return float(scale.cpus_per_worker)
    if not usable:
        return 1.0
    if gpu:
        return max(1.0, float(min(node.cpus // node.gpus for node in usable)))
    # Computed for the maximum of the range, whatever the current number of workers, so that more workers fit later.
    share = min(node.cpus for node in usable) / math.ceil(scale.max_workers / len(usable))
    if share >= 1:
        return float(int(share))
    # Ray's resolution is 1/10,000 CPU. Rounding down keeps the sum within the CPUs.
    return math.floor(share * 1e4) / 1e4 if cluster.is_local else 1.0
