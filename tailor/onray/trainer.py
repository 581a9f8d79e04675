"""Runs a plan through Ray Train: in this process, or in workers of a cluster."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from tailor import machine
from tailor.errors import StoreError
from tailor.layout import CHECKPOINTS, EVALUATION, LOGS
from tailor.onray import cluster as clusters
from tailor.onray import failures, monitor, supervisor, worker
from tailor.onray.supervisor import Watch
from tailor.store import Store, filesystem

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.train import ScalingConfig

    from tailor.onray.cluster import Cluster
    from tailor.onray.monitor import Publish
    from tailor.onray.worker import Job
    from tailor.plan import Plan
    from tailor.spec.recipe import Recipe

POLL_SECONDS = 0.2

PATIENCE_SECONDS = 6 * 3600
"""How long workers wait for one another: while the first writes, hashes and uploads a large artifact, the others have nothing
to do, and Ray's half an hour would end the run there, at every try. Workers that die are found by other means."""


def fit(plan: Plan, recipe: Recipe, watch: Watch, *, cluster: Cluster | None) -> bool:
    """Train. Rank 0's records come to `watch.publish`, in order, in the calling thread.

    True when the run finished, False when it saved a checkpoint and stopped as the interrupts asked.
    `cluster` is None for training in this process. Raises the TailorError of a worker, a WorkerError
    for its other errors, and ScaleError when the workers cannot be placed.
    """
    run = Store(plan.run_url)
    run.remove_temporary()
    clear(run)
    if cluster is None:
        cpus = float(recipe.scale.cpus_per_worker or machine.cpus())
        clusters.import_ray(recipe.scale, verbose=watch.verbose)
        return _fit_here(_job(plan, recipe, cpus, watch, distributed=False), watch)
    from ray.train import ScalingConfig

    if plan.run_url.startswith("memory:") or plan.tokens_url.startswith("memory:"):
        raise StoreError(
            "a memory:// folder is seen by one process only, but this run has workers of its own",
            hint="set save.to and data.store to a folder that every worker sees",
        )

    def once(workers: int, resources: dict[str, float], publish: Publish, stop: Callable[[], bool]) -> str:
        job = _job(plan, recipe, resources["CPU"], watch, distributed=True, gauges=not cluster.own)
        scaling = ScalingConfig(
            num_workers=workers,
            use_gpu=plan.gpu,
            resources_per_worker=resources,
            placement_strategy=recipe.scale.placement.upper(),
        )
        return _fit_on_workers(job, scaling, publish, stop, own_ray=cluster.own)

    return supervisor.supervise(once, recipe.scale, cluster, watch, gpu=plan.gpu)


def clear(run: Store) -> None:
    """Remove what a killed writer left in the folder, and Ray Train's own files.

    Which checkpoint to go on from is the folder's to say, not that of a snapshot of Ray's.
    """
    for folder in (run, run.join(LOGS), run.join(EVALUATION)):
        folder.tidy()
    run.join(CHECKPOINTS).sweep()
    for file in ("checkpoint_manager_snapshot.json", ".validate_storage_marker"):
        run.remove(f"{CHECKPOINTS}/{file}")


def _job(
    plan: Plan, recipe: Recipe, cpus: float, watch: Watch, *, distributed: bool, gauges: bool = False
) -> Job:
    return worker.Job(
        plan=plan,
        track=recipe.track,
        threads=clusters.threads(cpus),
        working_folder=os.getcwd(),
        distributed=distributed,
        attempt=watch.attempt,
        verbose=watch.verbose,
        gauges=gauges,
    )


def _fit_here(job: Job, watch: Watch) -> bool:
    """Ray Train's in-process mode: the same trainer and the same function, and no Ray is started."""
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    line = monitor.Direct(watch.publish, lambda: watch.interrupts.asked is not None)
    result = TorchTrainer(
        worker.train,
        train_loop_config={"job": job, "line": line},
        scaling_config=ScalingConfig(num_workers=0, use_gpu=job.plan.gpu),
    ).fit()
    return bool(result.return_value == "finished")


def _fit_on_workers(
    job: Job,
    scaling: ScalingConfig,
    publish: Publish,
    stop: Callable[[], bool],
    *,
    own_ray: bool,
) -> str:
    """One group of workers, from its start to its end; returns how its loop ended."""
    import ray
    from ray.train import ControllerError, FailureConfig, RunConfig, WorkerGroupError
    from ray.train.torch import TorchConfig

    run = Store(job.plan.run_url)
    storage, filesystem = _storage(run)
    mailbox = monitor.start()
    trainer = _lean_trainer(own_ray)(
        worker.train,
        train_loop_config={"job": job, "line": monitor.Remote(mailbox)},
        scaling_config=scaling,
        torch_config=TorchConfig(timeout_s=PATIENCE_SECONDS),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=storage,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]
        ),
    )
    results: list[Any] = []
    errors: list[BaseException] = []

    def run_trainer() -> None:
        try:
            results.append(trainer.fit())
        except BaseException as error:
            errors.append(error)

    # In a thread: fit() in the main thread takes SIGINT over.
    thread = threading.Thread(target=run_trainer, name="trainer", daemon=True)
    thread.start()
    stopped = False
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        for record in ray.get(mailbox.collect.remote()):
            publish(record)
        if not stopped and (stopped := stop()):
            mailbox.stop.remote()
    for record in ray.get(mailbox.collect.remote()):
        publish(record)
    clear(run)
    if not errors:
        return str(results[0].return_value)
    error = errors[0]
    if isinstance(error, WorkerGroupError):
        raise failures.cause(error.worker_failures) from error
    if isinstance(error, ControllerError):
        raise failures.not_started(error, scaling.num_workers) from error
    raise error


def _storage(run: Store) -> tuple[str, Any]:
    """(path, pyarrow filesystem) of the run's folder, as Ray Train takes them. The filesystem is None for a local path."""
    if run.is_local:
        return run.url, None
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = filesystem(run.url)
    return path, PyFileSystem(FSSpecHandler(fs))


def _lean_trainer(own_ray: bool) -> Any:
    """TorchTrainer without two helper processes that have nothing to do here.

    One serves Ray Data sets to workers, and there are none. The other cleans up behind a driver that died,
    and a Ray of this process's own dies with it. They cost 3.4 CPU seconds at the start, 1 s at the end.
    """
    from ray.train.torch import TorchTrainer

    idle = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if own_ray else set())

    class LeanTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
            return [callback for callback in callbacks if type(callback).__name__ not in idle]

    return LeanTrainer
