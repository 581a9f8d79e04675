"""One worker of a run: the function that the driver executes in its own process, and Ray Train in its workers."""

from __future__ import annotations

import os
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailor.errors import StoreError, TailorError, TrainingError, WorkerError
from tailor.imports import uncollected
from tailor.layout import LOGS
from tailor.models.libraries import import_libraries
from tailor.onray.failures import PeerError
from tailor.onray.gauges import Gauges
from tailor.onray.monitor import Channel, Record
from tailor.onray.preemption import NoticeWatcher, notice_record
from tailor.quiet import quiet
from tailor.redaction import redacted
from tailor.runs.lock import is_held_by
from tailor.runs.log import MetricsLog
from tailor.store import Store, run_folder
from tailor.store.run_folder import step_of
from tailor.track import Tracker, open_trackers

if TYPE_CHECKING:
    import torch

    from tailor.plan import Plan
    from tailor.spec.track import Track
    from tailor.train.session import Probe


PEER_SECONDS = 5.0
"""How long a worker that lost the connection to another one waits before it raises its error. In this time, Ray
detects the other worker's error or death, which is the cause."""


@dataclass(frozen=True)
class WorkerTask:
    """What the driver passes to every worker."""

    plan: Plan
    track: Track
    threads: int
    """Compute threads of each worker."""
    working_folder: str
    """The driver's working directory, so that relative paths mean the same in the workers."""
    distributed: bool
    """False when the worker is the driver's own process."""
    attempt: str = ""
    """Name under which the driver has locked the run folder."""
    verbose: bool = False
    on_cluster: bool = False
    """Whether the worker is on a Ray cluster, not on a local Ray instance. Then it exports metrics as Ray gauges for
    Prometheus, and watches for preemption notices."""


class Recorder:
    """Writes the records of rank 0 to the run's log and the trackers, and sends them to the driver."""

    def __init__(self, task: WorkerTask, channel: Channel, *, after_step: int) -> None:
        run = Store(task.plan.run_url)
        self._log = MetricsLog(run, after_step=after_step, allowed=lambda: is_held_by(run, task.attempt))
        self._trackers: list[Tracker] = open_trackers(
            task.track,
            run,
            after_step=after_step,
            sent=self._log.sent,
            warn=lambda text: channel.post(_status(text)),
        )
        if task.on_cluster:
            self._trackers.append(Gauges(run, task.plan.steps))
        self._channel = channel

    def write(self, record: Record) -> None:
        record = {**record, "time": round(time.time(), 3)}
        self._log.write(record)
        for tracker in self._trackers:
            tracker.write(record)
        self._channel.post(record)

    def flush(self) -> None:
        self._log.flush()

    def close(self, *, finished: bool) -> None:
        self._log.close()
        for tracker in self._trackers:
            tracker.close(finished=finished)


def _status(message: str) -> Record:
    return {"kind": "status", "message": message, "time": time.time()}


class WorkerHost:
    """Implements `tailor.train.host.Host`, through which the training loop accesses its worker."""

    def __init__(self, task: WorkerTask, channel: Channel) -> None:
        self.rank, self.world = _rank_and_world(task)
        self.device = _device(task)
        self._channel = channel
        self._checkpoint = run_folder.latest_checkpoint(Store(task.plan.run_url)) or task.plan.resume_from
        step = step_of(self._checkpoint) if self._checkpoint else 0
        self._recorder = Recorder(task, channel, after_step=step) if self.rank == 0 else None
        self._watcher = NoticeWatcher() if task.on_cluster else None
        self._noticed = False

    def report(self, record: Record) -> None:
        if self._recorder is not None:
            self._recorder.write(record)

    def flush(self) -> None:
        if self._recorder is not None:
            self._recorder.flush()

    def resume(self) -> str | None:
        return self._checkpoint

    def stopping(self) -> bool:
        if self._watcher is not None and self._watcher.notice is not None:
            if not self._noticed:
                self._noticed = True
                self.report(notice_record(self._watcher.notice))
            return True
        return self._channel.stopping()

    def close(self, *, finished: bool = False) -> None:
        if self._recorder is not None:
            self._recorder.close(finished=finished)


def preload() -> None:
    """Import what a worker needs. Ray calls it in the new process, before it imports the same modules for its own use.

    Nothing here may ask CUDA for its devices, as bitsandbytes does: Ray has not yet chosen the GPUs of the process, and CUDA
    reads the choice once. An error is left to `train`, which imports the same modules and reports it.
    """
    with suppress(Exception), uncollected():
        import ray.train.torch  # noqa: F401
        from transformers import AutoModelForCausalLM  # noqa: F401

        from tailor.train import loop  # noqa: F401


def train(config: dict[str, Any]) -> str:
    """Train as one worker. Returns how the loop ended: `finished` or `stopped`.

    `config`: `task` (a WorkerTask) and `channel` (a Channel). Raises a TailorError unchanged. Every other error becomes a
    WorkerError or TrainingError with the rank and the file in the run folder that contains the traceback.
    """
    task: WorkerTask = config["task"]
    channel: Channel = config["channel"]
    _configure_process(task)
    rank, _ = _rank_and_world(task)
    channel.place(rank)
    host = None
    try:
        with uncollected():
            from tailor.train import loop
        import_libraries(adapter=task.plan.model.adapter is not None)
        if rank == 0:
            channel.post({"kind": "started", "time": time.time()})
        host = WorkerHost(task, channel)
        ended = loop.run(task.plan, host, probes=probes(task.plan))
        host.close(finished=ended == "finished")
        return ended
    except BaseException as error:
        log = f"{LOGS}/worker-{rank}.log"
        with suppress(StoreError):  # the worker's error is more important than a failure to write the log
            if isinstance(error, Exception):
                Store(task.plan.run_url).write_text(log, redacted(traceback.format_exc()))
            if host is not None:
                host.close()
        if isinstance(error, TailorError) or not isinstance(error, Exception):
            raise
        explained = explain(error, rank, Store(task.plan.run_url).url_of(log))
        if isinstance(explained, PeerError):
            time.sleep(PEER_SECONDS)
        raise explained from error
    finally:
        channel.close()


def probes(plan: Plan) -> list[Probe]:
    """The evaluations during training that are measured in addition to the loss: exact match and retrieval."""
    chosen: list[Probe] = []
    if plan.evaluate.generation is not None:
        from tailor.evaluate.in_training.exact_match import probe

        chosen.append(probe)
    if plan.evaluate.retrieval is not None:
        from tailor.evaluate.in_training.retrieval import Probe as RetrievalProbe

        chosen.append(RetrievalProbe(plan.evaluate.retrieval))
    return chosen


def explain(error: Exception, rank: int, log: str) -> TrainingError:
    """Turn an unexpected error of a worker into one line with a hint. A WorkerError means that a restart may succeed."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return TrainingError(
            f"worker {rank} ran out of GPU memory; the traceback is in {log}",
            hint="lower train.micro_batch_size, set train.activation_checkpointing: true, or lower data.max_length",
        )
    if isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error):
        return PeerError(
            f"worker {rank} lost the connection to another worker; the traceback is in {log}",
            hint="check the nodes of the cluster and the network between them",
        )
    text = " ".join(str(error).split())[:300]
    return WorkerError(f"worker {rank} failed: {type(error).__name__}: {text}; the traceback is in {log}")


def _configure_process(task: WorkerTask) -> None:
    """Set the log level, the working directory and the number of threads of the worker's process."""
    if not task.verbose:
        quiet()
    if task.distributed:
        if Path(task.working_folder).is_dir():
            os.chdir(task.working_folder)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(task.threads)
    import torch

    torch.set_num_threads(task.threads)


def _rank_and_world(task: WorkerTask) -> tuple[int, int]:
    """(this worker's rank, number of workers). The driver's own process needs no Ray: importing it takes 1.3 CPU seconds."""
    if not task.distributed:
        return 0, 1
    import ray.train

    context = ray.train.get_context()
    return context.get_world_rank(), context.get_world_size()


def _device(task: WorkerTask) -> torch.device:
    import torch

    if not task.plan.gpu:
        return torch.device("cpu")
    if not task.distributed:
        return torch.device("cuda", 0)
    from ray.train.torch import get_device

    return get_device()
