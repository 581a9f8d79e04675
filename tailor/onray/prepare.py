"""Preparation through Ray Data: the same tasks on every CPU of a machine or cluster, with the same results."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from tailor.encode.report import TaskReport
from tailor.encode.tasks import Runner, Task, in_process
from tailor.errors import TailorError

if TYPE_CHECKING:
    import pyarrow as pa

# Ray Data's own start takes about as long as encoding this much on one core.
SMALL_ON_CLUSTER = 64 << 20
# A machine's own Ray is started for it too, and the tokenizer uses all cores without it.
SMALL_ALONE = 1 << 30


def choose_runner(total_bytes: int, on_cluster: bool) -> Runner:
    """In-process for small inputs; through Ray Data for large ones. `total_bytes`: of the sources' files."""
    return ray_runner if total_bytes >= (SMALL_ON_CLUSTER if on_cluster else SMALL_ALONE) else in_process


def runner_by_size(connect: Callable[[], object], on_cluster: bool) -> Runner:
    """A runner that decides when it sees the tasks. `connect` is called only when Ray is needed."""

    def run(work: Callable[[Task], TaskReport], tasks: Sequence[Task]) -> Iterator[TaskReport]:
        runner = choose_runner(sum(task.size for task in tasks), on_cluster)
        if runner is ray_runner:
            connect()
        return runner(work, tasks)

    return run


def ray_runner(work: Callable[[Task], TaskReport], tasks: Sequence[Task]) -> Iterator[TaskReport]:
    """Run tasks as Ray Data tasks of one CPU each, on the Ray that this process is connected to."""
    import pyarrow as pa
    import ray
    from ray.data import DataContext

    def run(batch: pa.Table) -> pa.Table:
        # One thread per task, for every CPU has a task. Read when the tokenizer is first used in the process.
        os.environ["RAYON_NUM_THREADS"] = "1"
        return pa.table(
            {"report": pa.array([_outcome(work, task) for task in batch["task"].to_pylist()], pa.binary())}
        )

    context = DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    # Ray Data spreads tasks over all machines; Ray's own way takes those without GPUs first.
    strategy, context.scheduling_strategy = context.scheduling_strategy, "DEFAULT"
    log = logging.getLogger("ray.data")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        items = [{"task": pickle.dumps(task)} for task in tasks]
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        reports = dataset.map_batches(run, batch_size=None, batch_format="pyarrow", num_cpus=1)
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


def _outcome(work: Callable[[Task], TaskReport], task: bytes) -> bytes:
    # A user's mistake comes back as a value: Ray would wrap the exception and retry the task.
    try:
        return pickle.dumps(work(pickle.loads(task)))
    except TailorError as error:
        return pickle.dumps(error)
