"""Reports the progress of a run on the display, in status.json and as timings."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Protocol

from tailor.errors import StoreError, TailorError
from tailor.runs.lock import is_held_by
from tailor.runs.log import Record, read
from tailor.runs.status import Status, step_of
from tailor.runs.words import now
from tailor.store import Store, run_folder

if TYPE_CHECKING:
    from tailor.onray.display import Display
    from tailor.onray.interrupts import Interrupts
    from tailor.onray.monitor import Publish
    from tailor.plan import Plan

STATUS_SECONDS = 2.0
"""Minimum time between two updates of status.json in a local folder."""
REMOTE_STATUS_SECONDS = 15.0
"""The same on remote storage, where every write is a request."""

PROBES = {"answers_before": "training", "retrieval_before": "training", "answers_after": "artifact"}
"""Phase of an evaluation beside training -> the phase after its result."""


class Update(Protocol):
    def __call__(self, at_once: bool = False) -> None: ...


class Stopwatch:
    """Measures the seconds of consecutive phases. `parts`: phase -> seconds."""

    def __init__(self, parts: dict[str, float]) -> None:
        self.parts = parts
        self._last = time.time()

    def mark(self, part: str, at: float | None = None) -> None:
        """Add the time since the last mark to `part`. `at`: seconds since the epoch at its end, by default now."""
        at = at or time.time()
        self.parts[part] = round(self.parts.get(part, 0.0) + at - self._last, 3)
        self._last = at


def publisher(
    plan: Plan,
    run: Store,
    status: Status,
    watch: Stopwatch,
    display: Display,
    interrupts: Interrupts,
    update: Update,
) -> Publish:
    """A function that passes the records of the run to the display and to `status`.

    update: called when `status` has changed, to write status.json; with True when its phase has.
    """
    existing = run_folder.checkpoints(run)
    newest = existing[-1] if existing else plan.resume_from
    status.resumed_from = run_folder.step_of(newest) if newest else None
    status.step, status.steps, status.phase = status.resumed_from or 0, plan.steps, "workers"
    status.write(run)
    display.planned(plan, status.step)
    display.training(status.steps, status.step)
    display.doing("starting to train")
    expected = ["workers", "model", "first_step"]

    def publish(record: Record) -> None:
        _mark(record, expected, watch)
        kind, before = record["kind"], status.phase
        status.phase = _phase(record, before)
        if kind == "started":
            display.doing("loading the model")
            update(True)
            return
        display.record(record)
        if "phase" in record:
            display.doing(record["message"])
        if kind == "failure":
            status.failures.append({"time": now(), "error": record["error"]})
            display.line(f"{record['error']}; restarting from the last checkpoint")
            display.doing("restarting the workers")
        elif kind == "train":
            # From the first step until the last checkpoint is written, a signal requests a checkpoint.
            interrupts.can_save = True
            status.step = record["step"]
        elif kind == "saved":
            interrupts.can_save = False
        if kind in ("train", "failure") or status.phase != before:
            update(status.phase != before)

    return publish


def _phase(record: Record, phase: str | None) -> str | None:
    """The phase of the run after a record, `phase` before it."""
    match record["kind"]:
        case "started":
            return "model"
        case "failure":
            return "workers"
        case "train":
            return "training"
        case "saved":
            return "artifact"
        case "generation" | "retrieval" if phase in PROBES:  # its result
            return PROBES[phase]
    return record.get("phase", phase)


def _mark(record: Record, expected: list[str], watch: Stopwatch) -> None:
    """Stop the time of the start-up phase that ends with this record. `expected`: the phases that have not ended yet."""
    ends = {"started": "workers", "status": "model", "train": "first_step"}.get(record["kind"])
    probe = {"generation": "answers_before", "retrieval": "retrieval_before"}.get(record["kind"])
    if probe is not None and "first_step" in expected:
        watch.mark(probe, record["time"])
    elif ends is not None and expected and ends == expected[0]:
        watch.mark(expected.pop(0), record["time"])


@contextmanager
def recorded(run: Store, status: Status, plan: Plan, attempt: str) -> Iterator[Update]:
    """Write `status` to status.json regularly and when training ends, also after an error, while `attempt` has the lock.

    Yields a function to call when the status has changed; with True it does not wait for the interval. It writes in a
    background thread, so that slow storage does not block training.
    """
    wait = STATUS_SECONDS if run.is_local else REMOTE_STATUS_SECONDS
    began = time.monotonic()
    writing: Future[None] | None = None
    thread = ThreadPoolExecutor(1, "status")

    def update(at_once: bool = False) -> None:
        nonlocal began, writing
        due = time.monotonic() - began >= wait and (writing is None or writing.done())
        if due or at_once:
            began = time.monotonic()
            writing = thread.submit(_write, run, copy.deepcopy(status), attempt)

    try:
        yield update
        # A run that has stopped early ended at the step of its last record.
        last = plan.steps if plan.early_stopping is None else step_of(status, read(run))
        status.state, status.step = "finished", last
    except KeyboardInterrupt as stop:
        status.state, status.error = "interrupted", str(stop) or "interrupted by the user"
        with suppress(StoreError):  # the log may contain a later step than the last record that arrived here
            status.step = step_of(status, read(run))
        raise
    except Exception as error:
        status.state = "failed"
        status.error = str(error) if isinstance(error, TailorError) else f"{type(error).__name__}: {error}"
        raise
    finally:
        thread.shutdown()
        status.ended, status.phase = now(), None
        # The error that ended the run is more important than a failure to write the status.
        with suppress(StoreError) if status.state != "finished" else nullcontext():
            _write(run, status, attempt)


def _write(run: Store, status: Status, attempt: str) -> None:
    """Write the status, unless another process has taken over the run folder and writes its own."""
    if is_held_by(run, attempt):
        status.write(run)
