"""Runs the batches of an evaluation or of `tailor embed` on Ray workers.

The results do not depend on which worker processes which batch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import chain, islice
from typing import Any

from tailor.errors import TailorError, WorkerError
from tailor.evaluate.batches import EvaluationBatch, ModelRef, Result, Runner, Worker, in_process
from tailor.evaluate.progress import ResultParts, compute_remaining
from tailor.onray import cluster as clusters
from tailor.onray.display import Display
from tailor.onray.failures import dead_worker
from tailor.onray.placement import resources_per_worker, wait_for_nodes
from tailor.runs.words import duration
from tailor.spec.scale import Scale
from tailor.spec.suite import Decoding


def choose_workers(
    workers: int | None, address: str | None, display: Display, stack: ExitStack, verbose: bool
) -> tuple[int, Runner]:
    """(number of workers, runner of the batches). The runner uses this process or Ray; `stack` disconnects from Ray.

    workers: by default one for each GPU of the machine or cluster, and one if there is no GPU.
    """
    scale = Scale(workers=workers or 1, address=address)
    joins = clusters.address(scale) is not None
    number = workers or 1
    if workers is None and not joins:
        import torch

        number = max(1, torch.cuda.device_count())
    if number == 1 and not joins:
        return 1, in_process
    display.doing("joining the Ray cluster" if joins else "starting Ray")
    scale = Scale(workers=number, address=address)
    starting = stack.enter_context(clusters.BackgroundStart(scale, verbose=verbose))
    cluster = wait_for_nodes(scale, starting.wait(), display.line)
    if workers is None and joins:
        number = max(1, int(cluster.gpus))
    gpu = cluster.gpus >= 1
    display.line(f"running on {clusters.count(number, 'Ray worker')}")
    return number, ray_runner(cluster, number, gpu=gpu)


def compute(
    batches: Sequence[EvaluationBatch],
    models: Sequence[ModelRef],
    decoding: Decoding,
    runner: Runner,
    parts: ResultParts,
    display: Display,
    show: Callable[[int, int, float | None], None],
) -> Iterator[Result]:
    """The results of all batches in order. All of them are computed and written before the first one is returned.

    parts: the batches that are done. show: called with (rows done, rows in total, estimated seconds left).
    """
    sizes = [len(batch.items) for batch in batches]
    remaining = parts.remaining(len(batches))
    total, remaining_rows = sum(sizes), sum(sizes[number] for number in remaining)
    if remaining_rows < total:
        display.line(f"resuming: {total - remaining_rows:,} of {total:,} rows are already done")
    began = time.monotonic()
    display.doing("loading the model")
    if remaining_rows:
        computed = runner(models, decoding, [batches[number] for number in remaining])
        done = compute_remaining(remaining, sizes, computed, parts.write, show)
        display.line(f"{done:,} rows in {duration(time.monotonic() - began)}")
    return map(parts.read, range(len(batches)))


def ray_runner(cluster: clusters.Cluster, workers: int, *, gpu: bool) -> Runner:
    """A runner that uses `workers` Ray workers. ScaleError when they do not fit on the cluster."""
    resources = resources_per_worker(Scale(workers=workers), cluster, workers, gpu=gpu)

    def run(
        models: Sequence[ModelRef], decoding: Decoding, batches: Iterable[EvaluationBatch]
    ) -> Iterator[tuple[int, Result]]:
        import ray

        remote = ray.remote(_Remote).options(
            num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0), max_concurrency=1
        )
        threads = clusters.threads(resources["CPU"])
        source = iter(batches)
        first = list(islice(source, workers))
        actors = [remote.remote(list(models), decoding, os.getcwd(), threads) for _ in first]
        nodes = [actor.node.remote() for actor in actors]
        waiting = enumerate(chain(first, source))
        pending: dict[
            Any, tuple[int, Any]
        ] = {}  # Ray's reference of a result -> (number of the batch, actor)

        def submit_next(actor: Any) -> None:
            if (batch := next(waiting, None)) is not None:
                pending[actor.compute.remote(batch[1])] = (batch[0], actor)

        try:
            for actor in actors:
                submit_next(actor)
            while pending:
                (ready, *_), _ = ray.wait(list(pending), num_returns=1)
                index, actor = pending.pop(ready)
                try:
                    outcome = ray.get(ready)
                except ray.exceptions.RayActorError as error:
                    rank = actors.index(actor)
                    raise WorkerError(
                        dead_worker(rank, error, _placed(nodes)).message,
                        hint="run the same command again; it resumes with the batches that are not done yet",
                    ) from error
                if isinstance(outcome, TailorError):
                    raise outcome
                submit_next(actor)
                yield index, outcome
        finally:
            for actor in actors:
                ray.kill(actor)

    return run


def _placed(answers: Sequence[Any]) -> dict[int, str]:
    """rank -> ID of its node, of the actors that have started. answers: Ray's references of the IDs."""
    import ray

    placed = {}
    for rank, answer in enumerate(answers):
        with suppress(ray.exceptions.RayError):  # it did not start, or Ray's copy of the answer is lost
            placed[rank] = ray.get(answer, timeout=1.0)
    return placed


class _Remote:
    """Ray actor with a worker that computes batches."""

    def __init__(
        self, models: Sequence[ModelRef], decoding: Decoding, working_folder: str, threads: int
    ) -> None:
        import torch

        from tailor.quiet import quiet

        quiet()
        if os.path.isdir(working_folder):  # so that relative paths mean the same as in the driver
            os.chdir(working_folder)
        torch.set_num_threads(threads)
        self._worker = Worker(models, decoding)

    def node(self) -> str:
        """ID of this worker's node."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def compute(self, batch: EvaluationBatch) -> Result | TailorError:
        """The result of a batch, or its TailorError."""
        # The error is returned, not raised, because Ray would wrap the exception.
        try:
            return self._worker(batch)
        except TailorError as error:
            return error
