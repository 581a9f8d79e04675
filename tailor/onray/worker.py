"""One worker of a run: the same function in this process and in Ray's workers."""

from __future__ import annotations

import os
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailor.errors import StoreError, TailorError, TrainingError, WorkerError
from tailor.layout import LOGS
from tailor.onray.failures import PeerError
from tailor.onray.gauges import Gauges
from tailor.onray.monitor import Line, Record
from tailor.quiet import quiet
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
"""How long a worker that lost another one leaves it to that one to be found: it knows the cause, or is it."""


@dataclass(frozen=True)
class Job:
    """What every worker is told."""

    plan: Plan
    track: Track
    threads: int
    """Arithmetic threads of each worker."""
    working_folder: str
    """The driver's, so that relative paths mean the same."""
    distributed: bool
    """False when the worker is the driver's own process."""
    attempt: str = ""
    """The name under which the driver holds the run's folder."""
    verbose: bool = False
    gauges: bool = False
    """Whether Ray offers figures to Prometheus: on a cluster that was joined."""


class Recorder:
    """Rank 0's records: into the run's log, to the trackers, to the driver."""

    def __init__(self, job: Job, line: Line, *, after_step: int) -> None:
        run = Store(job.plan.run_url)
        self._log = MetricsLog(run, after_step=after_step, allowed=lambda: is_held_by(run, job.attempt))
        self._trackers: list[Tracker] = open_trackers(
            job.track, run, after_step=after_step, warn=lambda text: line.post(_status(text))
        )
        if job.gauges:
            self._trackers.append(Gauges(run, job.plan.steps))
        self._line = line

    def write(self, record: Record) -> None:
        record = {**record, "time": round(time.time(), 3)}
        self._log.write(record)
        for tracker in self._trackers:
            tracker.write(record)
        self._line.post(record)

    def flush(self) -> None:
        self._log.flush()

    def close(self, *, finished: bool) -> None:
        self._log.close()
        for tracker in self._trackers:
            tracker.close(finished=finished)


def _status(message: str) -> Record:
    return {"kind": "status", "message": message, "time": time.time()}


class RayHost:
    """The loop's view of this worker (`tailor.train.host.Host`)."""

    def __init__(self, job: Job, line: Line) -> None:
        import ray.train

        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world: int = context.get_world_size()
        self.device = _device(job.plan)
        self._line = line
        self._checkpoint = run_folder.latest_checkpoint(Store(job.plan.run_url)) or job.plan.resume_from
        step = step_of(self._checkpoint) if self._checkpoint else 0
        self._recorder = Recorder(job, line, after_step=step) if self.rank == 0 else None

    def report(self, record: Record) -> None:
        if self._recorder is not None:
            self._recorder.write(record)

    def flush(self) -> None:
        if self._recorder is not None:
            self._recorder.flush()

    def resume(self) -> str | None:
        return self._checkpoint

    def stopping(self) -> bool:
        return self._line.stopping()

    def close(self, *, finished: bool = False) -> None:
        if self._recorder is not None:
            self._recorder.close(finished=finished)


def train(config: dict[str, Any]) -> str:
    """Ray Train's function per worker; returns how the loop ended. `config` holds `job` (a Job) and `line` (a Line).

    A TailorError passes through. Anything else becomes a WorkerError or TrainingError that names the rank
    and the log in the run's folder that holds the traceback.
    """
    job: Job = config["job"]
    line: Line = config["line"]
    _settle(job)
    import ray.train

    rank = ray.train.get_context().get_world_rank()
    if rank == 0:
        line.post({"kind": "started", "time": time.time()})
    host = None
    try:
        from tailor.train import loop

        host = RayHost(job, line)
        ended = loop.run(job.plan, host, probes=probes(job.plan))
        host.close(finished=ended == "finished")
        return ended
    except BaseException as error:
        log = f"{LOGS}/worker-{rank}.log"
        with suppress(StoreError):  # the error itself matters more
            if isinstance(error, Exception):
                Store(job.plan.run_url).write_text(log, traceback.format_exc())
            if host is not None:
                host.close()
        if isinstance(error, TailorError) or not isinstance(error, Exception):
            raise
        told = explained(error, rank, Store(job.plan.run_url).url_of(log))
        if isinstance(told, PeerError):
            time.sleep(PEER_SECONDS)
        raise told from error
    finally:
        line.close()


def probes(plan: Plan) -> list[Probe]:
    """What is measured beside the loss."""
    found: list[Probe] = []
    if plan.evaluate.generation is not None:
        from tailor.evaluate.in_training.exact_match import probe

        found.append(probe)
    if plan.evaluate.retrieval is not None:
        from tailor.evaluate.in_training.retrieval import Probe as RetrievalProbe

        found.append(RetrievalProbe(plan.evaluate.retrieval))
    return found


def explained(error: Exception, rank: int, log: str) -> TrainingError:
    """An unexpected error of a worker, in a line. A WorkerError where another try may go well."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return TrainingError(
            f"worker {rank} ran out of GPU memory; the traceback is in {log}",
            hint="lower train.micro_batch_size, set train.activation_checkpointing: true, or lower data.max_length",
        )
    if isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error):
        return PeerError(
            f"worker {rank} lost the connection to another worker; the traceback is in {log}",
            hint="look at the machines of the cluster and the network between them",
        )
    text = " ".join(str(error).split())[:300]
    return WorkerError(f"worker {rank} stopped: {type(error).__name__}: {text}; the traceback is in {log}")


def _settle(job: Job) -> None:
    """Bring this process into the state that both ways of running share."""
    if not job.verbose:
        quiet()
    if job.distributed:
        if Path(job.working_folder).is_dir():
            os.chdir(job.working_folder)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(job.threads)
    import torch

    torch.set_num_threads(job.threads)


def _device(plan: Plan) -> torch.device:
    import torch

    if not plan.gpu:
        return torch.device("cpu")
    from ray.train.torch import get_device

    return get_device()
