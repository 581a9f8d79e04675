"""How a run is followed while it trains: on a display, in status.json, in seconds."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

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
REMOTE_STATUS_SECONDS = 15.0


class Stopwatch:
    """Seconds of each part, one after the other."""

    def __init__(self, parts: dict[str, float]) -> None:
        self.parts = parts
        self._last = time.time()

    def mark(self, part: str, at: float | None = None) -> None:
        """The time since the last mark went to `part`. `at`: seconds since the epoch."""
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
    update: Callable[[], None],
) -> Publish:
    """What takes the records of the run to the display and to status.json, which `update` brings up to date."""
    existing = run_folder.checkpoints(run)
    newest = existing[-1] if existing else plan.resume_from
    status.resumed_from = run_folder.step_of(newest) if newest else None
    status.step, status.steps = status.resumed_from or 0, plan.steps
    status.write(run)
    display.training(status.steps, status.step)
    display.doing("starting to train")
    expected = ["workers", "model", "first_step"]

    def publish(record: Record) -> None:
        _mark(record, expected, watch)
        kind = record["kind"]
        if kind == "started":
            display.doing("loading the model")
            return
        display.record(record)
        if kind == "failure":
            status.failures.append({"time": now(), "error": record["error"]})
            display.line(f"{record['error']}; starting again from the last checkpoint")
            display.doing("starting the workers again")
        elif kind == "train":
            # A signal now asks for a checkpoint, until that of the last step is made.
            interrupts.saves = True
            status.step = record["step"]
        elif kind == "saved":
            interrupts.saves = False
        if kind in ("train", "failure"):
            update()

    return publish


def _mark(record: Record, expected: list[str], watch: Stopwatch) -> None:
    """Close the start-up part that a record ends."""
    ends = {"started": "workers", "status": "model", "train": "first_step"}.get(record["kind"])
    before = {"generation": "answers_before", "retrieval": "retrieval_before"}.get(record["kind"])
    if before is not None and "first_step" in expected:
        watch.mark(before, record["time"])
    elif ends is not None and expected and ends == expected[0]:
        watch.mark(expected.pop(0), record["time"])


@contextmanager
def recorded(run: Store, status: Status, plan: Plan, attempt: str) -> Iterator[Callable[[], None]]:
    """While `attempt` holds the run: write how it stands, now and then, and how training ended, whatever happens.

    Gives the function that is called when the status has changed. Nobody waits for the writing.
    """
    wait = STATUS_SECONDS if run.is_local else REMOTE_STATUS_SECONDS
    began = time.monotonic()
    writing: Future[None] | None = None
    thread = ThreadPoolExecutor(1, "status")

    def update() -> None:
        nonlocal began, writing
        if time.monotonic() - began >= wait and (writing is None or writing.done()):
            began = time.monotonic()
            writing = thread.submit(_write, run, copy.deepcopy(status), attempt)

    try:
        yield update
        status.state, status.step = "finished", plan.steps
    except KeyboardInterrupt as stop:
        status.state, status.error = "interrupted", str(stop) or "interrupted by the user"
        with suppress(StoreError):  # a step may be in the log and not yet here
            status.step = step_of(status, read(run))
        raise
    except Exception as error:
        status.state = "failed"
        status.error = str(error) if isinstance(error, TailorError) else f"{type(error).__name__}: {error}"
        raise
    finally:
        thread.shutdown()
        status.ended = now()
        # What ended a run matters more than a store that cannot be told.
        with suppress(StoreError) if status.state != "finished" else nullcontext():
            _write(run, status, attempt)


def _write(run: Store, status: Status, attempt: str) -> None:
    """Another process may have taken the run over, whose status is its own to tell."""
    if is_held_by(run, attempt):
        status.write(run)
