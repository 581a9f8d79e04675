"""Preparation through Ray Data: the same tasks on every CPU of a machine or cluster, with the same results."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tailor.encode.report import TaskReport
from tailor.encode.tasks import Runner, Task, Work, in_process
from tailor.errors import ScaleError, TailorError
from tailor.quiet import quiet

if TYPE_CHECKING:
    import pyarrow as pa

# Ray Data's own start takes about as long as encoding this much on one core.
SMALL_ON_CLUSTER = 64 << 20
# A machine's own Ray is started for it too, and the tokenizer uses all cores without it.
SMALL_ALONE = 1 << 30
# A model that scores passages uses one core, and takes a minute or more for this much.
SMALL_SCORED = 1 << 19


def choose_runner(total_bytes: int, on_cluster: bool, scored: bool = False) -> Runner:
    """In-process for small inputs; through Ray Data for large ones.

    total_bytes: of the sources' files. scored: a model scores the passages of long prompts.
    """
    small = SMALL_SCORED if scored else SMALL_ON_CLUSTER if on_cluster else SMALL_ALONE
    return ray_runner if total_bytes >= small else in_process


def runner_by_size(connect: Callable[[], object], on_cluster: bool) -> Runner:
    """A runner that decides when it sees the tasks. `connect` is called only when Ray is needed."""

    def run(work: Work, tasks: Sequence[Task]) -> Iterator[TaskReport]:
        scored = work.encoder.scorer is not None
        runner = choose_runner(sum(task.size for task in tasks), on_cluster, scored)
        if runner is ray_runner:
            connect()
        return runner(work, tasks)

    return run


def ray_runner(work: Work, tasks: Sequence[Task]) -> Iterator[TaskReport]:
    """Run tasks as Ray Data tasks of one CPU each, on the Ray that this process is connected to.

    With a model that scores passages, they run in actors that hold it, as many as the machines' memory has room for.
    ScaleError when it has none.
    """
    import pyarrow as pa
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    def run(batch: pa.Table) -> pa.Table:
        return _reports(work, batch)

    settings: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "num_cpus": 1}
    scorer = work.encoder.scorer
    if scorer is not None:
        size = min(len(tasks), _room(scorer.memory))
        settings |= {"compute": ActorPoolStrategy(size=size), "memory": scorer.memory}
        settings |= {"fn_constructor_args": [work]}
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
    """An actor's part: it holds the model from its first task on."""

    def __init__(self, work: Work) -> None:
        quiet()
        self._work = work

    def __call__(self, batch: pa.Table) -> pa.Table:
        return _reports(self._work, batch)


def _reports(work: Work, batch: pa.Table) -> pa.Table:
    """Tasks as bytes to reports as bytes."""
    import pyarrow as pa

    # One thread per task, for every CPU has a task. Read when the tokenizer is first used in the process.
    os.environ["RAYON_NUM_THREADS"] = "1"
    return pa.table(
        {"report": pa.array([_outcome(work, task) for task in batch["task"].to_pylist()], pa.binary())}
    )


def _room(memory: int) -> int:
    """How many processes of one CPU and so many bytes the machines have room for. ScaleError when there is none."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    room = sum(int(min(one.get("CPU", 0), one.get("memory", 0) // memory)) for one in machines)
    if not room:
        most = max((one.get("memory", 0) for one in machines), default=0)
        raise ScaleError(
            f"data.retrieve.embedder: a process that holds it takes {memory / 2**30:.1f} GiB, and no machine of the Ray "
            f"cluster offers more than {most / 2**30:.1f} GiB",
            hint="take a smaller embedder, or machines with more memory",
        )
    return room


def _outcome(work: Work, task: bytes) -> bytes:
    # A user's mistake comes back as a value: Ray would wrap the exception and retry the task.
    try:
        return pickle.dumps(work(pickle.loads(task)))
    except TailorError as error:
        return pickle.dumps(error)
