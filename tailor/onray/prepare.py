"""Data preparation with Ray Data: runs the same tasks as in-process preparation on all CPUs, with the same results."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tailor.encode.tasks import Runner, Task, TaskFunction, in_process
from tailor.errors import ScaleError, TailorError
from tailor.quiet import quiet

if TYPE_CHECKING:
    import pyarrow as pa

# Inputs below these sizes (bytes) are prepared in this process.
# On a cluster, starting Ray Data takes about as long as encoding this much on one core.
SMALL_ON_CLUSTER = 64 << 20
# Without a cluster, Ray must be started first, and the tokenizer already uses all cores without it.
SMALL_ALONE = 1 << 30
# A model that scores passages uses one core, and takes a minute or more for this much.
SMALL_SCORED = 1 << 19


def choose_runner(total_bytes: int, on_cluster: bool, scored: bool = False) -> Runner:
    """The in-process runner for small inputs, Ray Data for large ones.

    total_bytes: size of the source files. scored: a model scores the passages of long prompts (`data.retrieve`).
    """
    small = SMALL_SCORED if scored else SMALL_ON_CLUSTER if on_cluster else SMALL_ALONE
    return ray_runner if total_bytes >= small else in_process


def runner_by_size(connect: Callable[[], object], on_cluster: bool) -> Runner:
    """A runner that chooses by the size of the tasks. It calls `connect` once, and only when Ray is needed."""
    connected = False

    def run(work: TaskFunction, tasks: Sequence[Task]) -> Iterator[Any]:
        nonlocal connected
        scored = work.scorer is not None
        runner = choose_runner(sum(task.size for task in tasks), on_cluster, scored)
        if runner is ray_runner and not connected:
            connect()
            connected = True
        return runner(work, tasks)

    return run


def ray_runner(work: TaskFunction, tasks: Sequence[Task]) -> Iterator[Any]:
    """Run tasks as Ray Data tasks of one CPU each, on the Ray cluster that this process is connected to.

    If a model scores passages, the tasks run in actors that keep it loaded, as many as fit in the nodes' memory.
    ScaleError when not even one fits.
    """
    import pyarrow as pa
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    def run(batch: pa.Table) -> pa.Table:
        return _reports(work, batch)

    settings: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "num_cpus": 1}
    scorer = work.scorer
    if scorer is not None:
        size = min(len(tasks), _room(scorer.memory))
        settings |= {"compute": ActorPoolStrategy(size=size), "memory": scorer.memory}
        settings |= {"fn_constructor_args": [work]}
    context = DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    # Ray Data's default is SPREAD, over all nodes. Ray's DEFAULT strategy prefers nodes without GPUs.
    strategy, context.scheduling_strategy = context.scheduling_strategy, "DEFAULT"
    log = logging.getLogger("ray.data")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        items = [{"task": pickle.dumps(task)} for task in tasks]
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        reports = dataset.map_batches(run if scorer is None else _Process, **settings)
        for batch in reports.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            assert isinstance(batch, pa.Table)
            for outcome in batch.column("report"):
                report = pickle.loads(outcome.as_py())
                if isinstance(report, TailorError):
                    raise report
                yield report
    finally:
        context.enable_progress_bars = bars
        context.scheduling_strategy = strategy
        log.setLevel(level)


class _Process:
    """Callable of a Ray Data actor. The model is loaded at the first task and kept."""

    def __init__(self, work: TaskFunction) -> None:
        quiet()
        self._work = work

    def __call__(self, batch: pa.Table) -> pa.Table:
        return _reports(self._work, batch)


def _reports(work: TaskFunction, batch: pa.Table) -> pa.Table:
    """Process pickled tasks (column `task`) and return pickled reports (column `report`)."""
    import pyarrow as pa

    # One tokenizer thread per task, because every CPU has a task. The tokenizer reads it when it is first used.
    os.environ["RAYON_NUM_THREADS"] = "1"
    return pa.table(
        {"report": pa.array([_outcome(work, task) for task in batch["task"].to_pylist()], pa.binary())}
    )


def _room(memory: int) -> int:
    """How many processes with one CPU and `memory` bytes each fit on the nodes. ScaleError when none does."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    room = sum(int(min(node.get("CPU", 0), node.get("memory", 0) // memory)) for node in nodes)
    if not room:
        max_memory = max((node.get("memory", 0) for node in nodes), default=0)
        raise ScaleError(
            f"data.retrieve.embedder: a process with the embedder needs {memory / 2**30:.1f} GiB of memory, but the "
            f"largest node of the Ray cluster has {max_memory / 2**30:.1f} GiB",
            hint="use a smaller embedder, or nodes with more memory",
        )
    return room


def _outcome(work: TaskFunction, task: bytes) -> bytes:
    """The pickled report of a task, or its pickled TailorError."""
    # The error is returned, not raised, because Ray would wrap the exception and retry the task.
    try:
        return pickle.dumps(work(pickle.loads(task)))
    except TailorError as error:
        return pickle.dumps(error)
