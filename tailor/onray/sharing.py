"""Batches of an evaluation, or of texts to embed, on several Ray workers. Which worker does which batch changes no result."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from typing import Any

from tailor.errors import TailorError, WorkerError
from tailor.evaluate.batches import EvaluationBatch, ModelRef, Result, Runner, Worker, in_process
from tailor.onray import cluster as clusters
from tailor.onray.display import Display
from tailor.onray.placement import await_machines, resources_per_worker
from tailor.spec.scale import Scale
from tailor.spec.suite import Decoding


def choose_workers(
    workers: int | None, address: str | None, display: Display, stack: ExitStack, verbose: bool
) -> tuple[int, Runner]:
    """How many workers there are, and what runs the batches: this process, or Ray, which `stack` leaves at its end.

    workers: by default one for each GPU of the machine or cluster, else one.
    """
    scale = Scale(workers=workers or 1, address=address)
    joins = clusters.address(scale) is not None
    wanted = workers or 1
    if workers is None and not joins:
        import torch

        wanted = max(1, torch.cuda.device_count())
    if wanted == 1 and not joins:
        return 1, in_process
    display.doing("joining the Ray cluster" if joins else "starting Ray")
    starting = stack.enter_context(clusters.Starting(Scale(workers=wanted, address=address), verbose=verbose))
    cluster = await_machines(Scale(workers=wanted, address=address), starting.wait(), display.line)
    if workers is None and joins:
        wanted = max(1, int(cluster.gpus))
    gpu = cluster.gpus >= 1
    display.line(f"{wanted} workers on Ray" if wanted > 1 else "one worker on Ray")
    return wanted, ray_runner(cluster, wanted, gpu=gpu)


def ray_runner(cluster: clusters.Cluster, workers: int, *, gpu: bool) -> Runner:
    """A runner with so many workers on the Ray that this process is connected to. ScaleError when there is no room."""
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
        waiting = enumerate(chain(first, source))
        asked: dict[Any, tuple[int, Any]] = {}

        def ask(actor: Any) -> None:
            if (batch := next(waiting, None)) is not None:
                asked[actor.do.remote(batch[1])] = (batch[0], actor)

        try:
            for actor in actors:
                ask(actor)
            while asked:
                (ended, *_), _ = ray.wait(list(asked), num_returns=1)
                index, actor = asked.pop(ended)
                try:
                    outcome = ray.get(ended)
                except ray.exceptions.RayActorError as error:
                    raise WorkerError(
                        f"a worker of the evaluation died: {str(error).splitlines()[0]}",
                        hint="run the same command again, which goes on from the batches that are done",
                    ) from error
                if isinstance(outcome, TailorError):
                    raise outcome
                ask(actor)
                yield index, outcome
        finally:
            for actor in actors:
                ray.kill(actor)

    return run


class _Remote:
    """A worker in a process of its own."""

    def __init__(
        self, models: Sequence[ModelRef], decoding: Decoding, working_folder: str, threads: int
    ) -> None:
        import torch

        from tailor.quiet import quiet

        quiet()
        if os.path.isdir(working_folder):  # relative paths mean what they mean in the command
            os.chdir(working_folder)
        torch.set_num_threads(threads)
        self._worker = Worker(models, decoding)

    def do(self, batch: EvaluationBatch) -> Result | TailorError:
        # A user's mistake comes back as a value: Ray would wrap the exception.
        try:
            return self._worker(batch)
        except TailorError as error:
            return error
