"""Translates Ray Train's failures into TailorErrors."""

from __future__ import annotations

from typing import Any

from tailor.errors import TailorError, TrainingError, WorkerError


class PeerError(WorkerError):
    """A worker failed because it lost the connection to another worker."""


class DeadWorker(WorkerError):
    """The process of a worker died."""


def cause(failures: dict[int, Any]) -> TailorError:
    """The error that stopped the run, chosen from the errors of all ranks. `failures`: rank -> error.

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
        if isinstance(getattr(error, "health_check_failure", error), RayActorError):
            return DeadWorker(
                f"the process of worker {rank} died: it was killed, or the node ran out of memory",
                hint="check the node's memory; lower train.micro_batch_size or data.max_length",
            )
    causes = {rank: error for rank, error in failures.items() if not isinstance(error, PeerError)}
    rank, error = min((causes or failures).items())
    return error if isinstance(error, TailorError) else WorkerError(f"worker {rank}: {error}")


def not_started(error: Any, workers: int) -> TailorError:
    """The error of a run whose workers Ray Train's controller could not start."""
    first = str(error.controller_failure).splitlines()[0]
    return WorkerError(
        f"Ray Train could not start {workers} workers: {first}",
        hint="run `tailor run --verbose` to see Ray's log",
    )
