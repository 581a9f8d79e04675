"""Why Ray Train stopped, in the project's errors."""

from __future__ import annotations

from typing import Any

from tailor.errors import TailorError, TrainingError, WorkerError


class PeerError(WorkerError):
    """A worker failed because another one had."""


class DeadWorker(WorkerError):
    """The process of a worker is gone."""


def cause(failures: dict[int, Any]) -> TailorError:
    """The error that stopped the run, among those of the ranks.

    When one rank stops, the others fail at their next exchange with it; so a user's mistake comes first,
    then what training itself gave up on, then a process that died, then the lowest rank that has a cause of its own.
    """
    from ray.exceptions import RayActorError

    ours = [error for _, error in sorted(failures.items()) if isinstance(error, TailorError)]
    for kind in (TrainingError, WorkerError):
        if mistakes := [error for error in ours if not isinstance(error, kind)]:
            return mistakes[0]
    for rank, error in sorted(failures.items()):
        # Ray Train wraps it: what it noticed is that the worker did not answer.
        if isinstance(getattr(error, "health_check_failure", error), RayActorError):
            return DeadWorker(
                f"the process of worker {rank} died, killed from outside or for want of memory",
                hint="look at the machine's memory; lower train.micro_batch_size or data.max_length",
            )
    alone = {rank: error for rank, error in failures.items() if not isinstance(error, PeerError)}
    rank, error = min((alone or failures).items())
    return error if isinstance(error, TailorError) else WorkerError(f"worker {rank}: {error}")


def not_started(error: Any, workers: int) -> TailorError:
    """Ray Train's controller gave up before the workers ran."""
    first = str(error.controller_failure).splitlines()[0]
    return WorkerError(
        f"{workers} workers could not be started: {first}",
        hint="`tailor run --verbose` shows what Ray says",
    )
