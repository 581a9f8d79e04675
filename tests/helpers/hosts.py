"""Plain hosts: one process, and several gloo processes."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tailor.store import Store, run_folder

PRELOADED = ("tests.helpers.preloaded",)


@dataclass
class PlainHost:
    """Keeps every record. `resume_from` is a run's folder whose newest checkpoint is taken."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    records: list[dict[str, Any]] = field(default_factory=list)
    resume_from: str | None = None
    stop_after: int | None = None
    """Asks to stop when this step was reported."""

    def report(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def flush(self) -> None:
        pass

    def stopping(self) -> bool:
        train = self.of("train")
        return self.stop_after is not None and bool(train) and train[-1]["step"] >= self.stop_after

    def resume(self) -> str | None:
        return run_folder.latest_checkpoint(Store(self.resume_from)) if self.resume_from else None

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["kind"] == kind]

    def evaluations(self) -> list[dict[str, Any]]:
        """Without the memory that they took, which differs between equal runs."""
        return [
            {key: value for key, value in record.items() if key != "peak_memory_bytes"}
            for record in self.of("evaluation")
        ]

    def losses(self) -> list[float]:
        return [record["loss"] for record in self.of("train")]


def run_distributed(function: Callable[..., Any], *arguments: Any, world: int = 2) -> list[Any]:
    """Call `function(host, *arguments)` in `world` gloo processes; returns what each returned.

    `function` must be importable by name. A failure in a process is raised here with its traceback.
    The processes are forked from one that has imported torch, transformers and tailor: importing them takes
    6 seconds of CPU a process, more than most of the functions. Nothing else is shared between calls.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    queue = context.Queue()
    environment = dict(os.environ)  # the server keeps that of its own start
    processes = [
        context.Process(target=_worker, args=(queue, function, rank, world, port, environment, arguments))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    results: dict[int, Any] = {}
    try:
        for _ in range(world):
            rank, failed, value = queue.get(timeout=300)
            if failed:
                raise AssertionError(f"rank {rank}:\n{value}")
            results[rank] = value
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
    return [results[rank] for rank in range(world)]


def _worker(
    queue: Any,
    function: Any,
    rank: int,
    world: int,
    port: int,
    environment: dict[str, str],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.clear()
    os.environ.update({**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", rank=rank, world_size=world)
        queue.put((rank, False, function(PlainHost(rank, world), *arguments)))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        queue.put((rank, True, traceback.format_exc()))
