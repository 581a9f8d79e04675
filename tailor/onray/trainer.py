"""Executes a plan, in this process or with Ray Train on Ray workers."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from tailor import machine
from tailor.errors import StoreError
from tailor.layout import CHECKPOINTS, EVALUATION, LOGS
from tailor.onray import cluster as clusters
from tailor.onray import failures, loopback, monitor, supervisor, worker
from tailor.onray.supervisor import DriverContext
from tailor.store import Store, filesystem, run_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.train import ScalingConfig

    from tailor.onray.cluster import Cluster
    from tailor.onray.monitor import Publish
    from tailor.onray.worker import WorkerTask
    from tailor.plan import Plan
    from tailor.spec.recipe import Recipe

POLL_SECONDS = 0.2


def fit(plan: Plan, recipe: Recipe, driver: DriverContext, *, cluster: Cluster | None) -> bool:
    """Train. Passes the records of rank 0 to `driver.publish`, in order, in the calling thread.

    True when the run finished, False when it saved a checkpoint and stopped because `driver.interrupts` requested it.
    `cluster` is None for training in this process. Raises the TailorError of a worker, a WorkerError for its other
    errors, and ScaleError when the workers cannot be placed.
    """
    run = Store(plan.run_url)
    run.remove_temporary()
    clear(run)
    if cluster is None:
        cpus = float(recipe.scale.cpus_per_worker or machine.cpus())
        return _fit_in_process(_worker_task(plan, recipe, cpus, driver, distributed=False), driver)
    from ray.train import ScalingConfig

    if plan.run_url.startswith("memory:") or plan.tokens_url.startswith("memory:"):
        raise StoreError(
            "a memory:// folder exists in one process only, but this run has Ray workers in other processes",
            hint="set save.to and data.store to a folder that all workers can access",
        )

    def run_group(
        workers: int, resources: dict[str, float], publish: Publish, stop: Callable[[], bool]
    ) -> str:
        task = _worker_task(
            plan, recipe, resources["CPU"], driver, distributed=True, on_cluster=not cluster.is_local
        )
        scaling = ScalingConfig(
            num_workers=workers,
            use_gpu=plan.gpu,
            resources_per_worker=resources,
            placement_strategy=recipe.scale.placement.upper(),
        )
        return _fit_on_workers(task, scaling, publish, stop, local_ray=cluster.is_local)

    return supervisor.supervise(run_group, recipe.scale, cluster, driver, gpu=plan.gpu)


def clear(run: Store) -> None:
    """Remove incomplete files of killed processes from the run folder, and Ray Train's files.

    Ray Train would resume from its own snapshot of the checkpoints. tailor resumes from the last complete checkpoint.
    """
    for folder in (run, run.join(LOGS), run.join(EVALUATION)):
        folder.tidy()
    run.join(CHECKPOINTS).sweep(run_folder.CHECKPOINT_NAME, run_folder.is_checkpoint_file)
    for file in ("checkpoint_manager_snapshot.json", ".validate_storage_marker"):
        run.remove(f"{CHECKPOINTS}/{file}")


def _worker_task(
    plan: Plan,
    recipe: Recipe,
    cpus: float,
    driver: DriverContext,
    *,
    distributed: bool,
    on_cluster: bool = False,
) -> WorkerTask:
    return worker.WorkerTask(
        plan=plan,
        track=recipe.track,
        threads=clusters.threads(cpus),
        working_folder=os.getcwd(),
        distributed=distributed,
        attempt=driver.attempt,
        verbose=driver.verbose,
        on_cluster=on_cluster,
    )


def _fit_in_process(task: WorkerTask, driver: DriverContext) -> bool:
    """Train in this process, without Ray."""
    import torch.distributed as dist

    channel = monitor.LocalChannel(driver.publish, lambda: driver.interrupts.requested is not None)
    try:
        with machine.environment(machine.collectives_on_loopback()):  # gloo opens a port even for one process
            return worker.train({"task": task, "channel": channel}) == "finished"
    finally:
        if dist.is_initialized():  # by a strategy that shards, with one worker
            dist.destroy_process_group()


def _fit_on_workers(
    task: WorkerTask,
    scaling: ScalingConfig,
    publish: Publish,
    stop: Callable[[], bool],
    *,
    local_ray: bool,
) -> str:
    """Run one worker group from start to end. Returns how its loop ended: `finished` or `stopped`."""
    from ray.train import RunConfig
    from ray.train.torch import TorchConfig

    run = Store(task.plan.run_url)
    storage, filesystem = _storage(run)
    mailbox = monitor.start()
    trainer = _lean_trainer(local_ray)(
        worker.train,
        train_loop_config={"task": task, "channel": monitor.RemoteChannel(mailbox)},
        scaling_config=scaling,
        torch_config=(loopback.torch_config if local_ray else TorchConfig)(
            timeout_s=int(machine.COLLECTIVE_TIMEOUT.total_seconds())
        ),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=storage,
            storage_filesystem=filesystem,
            failure_config=failures.no_retries(),
            worker_runtime_env=_preloading() if local_ray else None,
        ),
    )
    results: list[Any] = []
    errors: list[BaseException] = []

    def run_trainer() -> None:
        try:
            with machine.environment(_watch_settings(local_ray)):
                results.append(trainer.fit())
        except BaseException as error:
            errors.append(error)

    # In a thread, because fit() in the main thread replaces the SIGINT handler.
    thread = threading.Thread(target=run_trainer, name="trainer", daemon=True)
    thread.start()
    stopped = False
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        for record in _answer(mailbox.collect):
            publish(record)
        if not stopped and (stopped := stop()):
            mailbox.stop.remote()
    for record in _answer(mailbox.collect):
        publish(record)
    clear(run)
    if not errors:
        return str(results[0].return_value)
    error = errors[0]
    translated = failures.translated(error, scaling.num_workers, _answer(mailbox.placed))
    if translated is error:
        raise error
    raise translated from error


def _answer(method: Any) -> Any:
    """The mailbox's answer. TrainingError when the mailbox is gone, which is on the same node as this process."""
    import ray

    try:
        return ray.get(method.remote())
    except ray.exceptions.RayActorError as error:
        raise failures.lost_cluster(error) from error


def _watch_settings(local_ray: bool) -> dict[str, str]:
    """Environment variables for Ray Train's watcher of preemption notices: only a cluster has nodes that are preempted."""
    name = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
    return {name: "0"} if local_ray and name not in os.environ else {}


def _preloading() -> dict[str, Any]:
    """The environment of workers that call `worker.preload` first. On other nodes, tailor may be part of a job's files."""
    from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR

    return {"env_vars": {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: f"{worker.__name__}.{worker.preload.__name__}"}}


def _storage(run: Store) -> tuple[str, Any]:
    """(path, pyarrow filesystem) of the run folder, as Ray Train expects them. A local path has no filesystem (None)."""
    if run.is_local:
        return run.url, None
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = filesystem(run.url)
    return path, PyFileSystem(FSSpecHandler(fs))


def _lean_trainer(local_ray: bool) -> Any:
    """A TorchTrainer class without helper processes that are not needed here.

    One serves Ray Data datasets to the workers; tailor uses none in training. On a local Ray instance, two more: one
    removes the placement group of a driver that died, with which the instance dies too. The other requests nodes from an
    autoscaler; the workers wait for its start. They cost 4.8 CPU seconds at the start and 1 s at the end.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    unneeded = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if local_ray else set())

    class LeanTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
            return [callback for callback in callbacks if type(callback).__name__ not in unneeded]

        def _initialize_and_run_controller(self, **settings: Any) -> Any:
            if local_ray:
                settings["scaling_policy"] = LocalScalingPolicy(self.scaling_config)
            return super()._initialize_and_run_controller(**settings)  # type: ignore[misc]

    class LocalScalingPolicy(FixedScalingPolicy):
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    return LeanTrainer
