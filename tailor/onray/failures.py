"""Why Ray Train stopped, in the project's errors."""

from __future__ import annotations

from typing import Any

from tailor.errors import ScaleError, TailorError, TrainingError, WorkerError


def cause(failures: dict[int, Any]) -> TailorError:
    """The error that stopped the run, among those of the ranks.

    When one rank stops, the others fail at their next exchange with it; so a user's mistake comes first,
    then what training itself gave up on, then a process that died, then the lowest rank.
    """
    from ray.exceptions import RayActorError

    ours = [error for _, error in sorted(failures.items()) if isinstance(error, TailorError)]
    for kind in (TrainingError, WorkerError):
        if mistakes := [error for error in ours if not isinstance(error, kind)]:
            return mistakes[0]
    for rank, error in sorted(failures.items()):
        if isinstance(error, RayActorError):
            return WorkerError(
                f"the process of worker {rank} died, killed from outside or for want of memory",
                mend="look at the machine's memory; lower train.micro_batch_size or data.max_length",
            )
    rank, error = min(failures.items())
    return error if isinstance(error, TailorError) else WorkerError(f"worker {rank}: {error}")


def not_placed(error: Any, workers: int, resources: dict[str, float]) -> TailorError:
    """Ray Train's controller gave up before the workers ran."""
    import ray

    first = str(error.controller_failure).splitlines()[0]
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    wanted = f"{resources['CPU']:g} CPU" + (" and 1 GPU" if "GPU" in resources else "")
    return ScaleError(
        f"{workers} workers with {wanted} each could not be placed: {first}; "
        f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free",
        mend="wait for the cluster's other jobs to end, or lower scale.workers",
    )
