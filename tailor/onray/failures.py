"""Translates Ray Train's failures into TailorErrors."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tailor.errors import TailorError, TrainingError, WorkerError
from tailor.onray import nodes

if TYPE_CHECKING:
    from ray.train import FailureConfig


LOST_SECONDS = 20.0
"""How long to wait for Ray to mark a node as dead that does not answer. It takes up to 18 s."""


class PeerError(WorkerError):
    """A worker failed because it lost the connection to another worker."""


class DeadWorker(WorkerError):
    """The process of a worker died, or its node."""


class Preempted(DeadWorker):
    """A node of the workers was taken away after a preemption notice. It does not count as a failure of the run."""


def no_retries() -> FailureConfig:
    """Ray Train's FailureConfig without retries of its own, because the supervisor restarts the workers.

    Ray's defaults retry controller failures and, since 2.55, preemptions without limit, with the same number of workers.
    """
    from ray.train import FailureConfig

    limits = {"max_failures": 0, "controller_failure_limit": 0, "max_preemption_failures": 0}
    fields = {field.name for field in dataclasses.fields(FailureConfig)}
    return FailureConfig(**{name: limit for name, limit in limits.items() if name in fields})


def translated(error: BaseException, workers: int, placed: Mapping[int, str]) -> BaseException:
    """The TailorError of an error of Ray Train; every other error unchanged. `placed`: rank -> ID of its node."""
    import ray.train

    if isinstance(error, ray.train.WorkerGroupError):
        return cause(error.worker_failures, placed)
    if isinstance(error, ray.train.ControllerError):
        return not_started(error, workers)
    preemption = getattr(ray.train, "PreemptionError", None)  # since Ray 2.55
    if preemption is not None and isinstance(error, preemption):
        return Preempted(f"{nodes.names(error.preemption_info.preempted_node_ids)} was preempted")
    return error


def cause(failures: dict[int, Any], placed: Mapping[int, str] | None = None) -> TailorError:
    """The error that stopped the run, chosen from the errors of all ranks.

    `failures`: rank -> error. `placed`: rank -> ID of its node, of the workers that started.

    When one rank stops, the others fail at their next collective operation with it, so most errors are consequences.
    The order of priority: errors that the user must fix, then a TrainingError (such as a NaN loss), then a process
    that died, then the lowest rank whose error is not a lost connection.
    """
    from ray.exceptions import RayActorError

    ours = [error for _, error in sorted(failures.items()) if isinstance(error, TailorError)]
    for kind in (TrainingError, WorkerError):
        if mistakes := [error for error in ours if not isinstance(error, kind)]:
            return mistakes[0]
    for rank, error in sorted(failures.items()):
        # Ray Train wraps the error of a dead process in that of the health check that noticed it.
        death = getattr(error, "health_check_failure", error)
        if isinstance(death, RayActorError):
            return dead_worker(rank, death, placed or {})
    causes = {rank: error for rank, error in failures.items() if not isinstance(error, PeerError)}
    rank, error = min((causes or failures).items())
    return error if isinstance(error, TailorError) else WorkerError(f"worker {rank}: {error}")


def dead_worker(rank: int, death: Any, placed: Mapping[int, str]) -> DeadWorker:
    """The error for a worker whose process died, alone or with its node."""
    node = placed.get(rank)
    state, count = _final_state(node, death) if node is not None else (None, 0)
    ranks = sorted(other for other in placed if placed[other] == node) or [rank]
    them = f"worker{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
    if getattr(death, "preempted", False):
        return Preempted(f"{f'node {state.name}' if state else 'a node'} was preempted, with {them}")
    if state is not None and not state.alive:
        return DeadWorker(
            f"node {state.name} was lost, with {them}",
            hint="check the node and its network; `ray status` lists the nodes of the cluster",
        )
    where = f" on node {state.name}" if state is not None and count > 1 else ""
    return DeadWorker(
        f"the process of worker {rank}{where} died: it was killed, or the node ran out of memory",
        hint="check the node's memory; lower train.micro_batch_size or data.max_length",
    )


def _final_state(node: str, death: Any) -> tuple[nodes.NodeState | None, int]:
    """(state of the dead worker's node, number of nodes), once Ray has noticed whether the node is dead.

    If the node's Ray process is alive, it reports the worker's death. If it isn't, Ray only knows that the worker is
    unavailable until it marks the node as dead.
    """
    from ray.exceptions import ActorUnavailableError

    deadline = time.monotonic() + (LOST_SECONDS if isinstance(death, ActorUnavailableError) else 0.0)
    while True:
        states = nodes.states()
        state = states.get(node)
        if state is None or not state.alive or time.monotonic() >= deadline:
            return state, len(states)
        time.sleep(0.5)


def lost_cluster(error: Exception) -> TrainingError:
    """The error of a command that lost its own connection to the cluster: Ray cannot restore it in the same process."""
    first = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    return TrainingError(
        f"the connection to the Ray cluster was lost: {first}",
        hint="check the head node and the node of this command; the same command resumes from the last checkpoint",
    )


def not_started(error: Any, workers: int) -> TailorError:
    """The error of a run whose workers Ray Train's controller could not start."""
    first = str(error.controller_failure).splitlines()[0]
    return WorkerError(
        f"Ray Train could not start {workers} workers: {first}",
        hint="run `tailor run --verbose` to see Ray's log",
    )
