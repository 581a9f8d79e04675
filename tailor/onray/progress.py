"""How a run is followed while it trains: on a display, in status.json, in seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from tailor.errors import TailorError
from tailor.runs import folder
from tailor.runs.clock import now
from tailor.runs.log import Record, read
from tailor.runs.status import Status, step_of
from tailor.store import Store

if TYPE_CHECKING:
    from tailor.encode.prepare import Progress
    from tailor.onray.interrupts import Interrupts
    from tailor.onray.monitor import Publish
    from tailor.plan import Plan

STATUS_SECONDS = 2.0
REMOTE_STATUS_SECONDS = 15.0


class Display(Protocol):
    """What a run is shown on."""

    def doing(self, what: str) -> None: ...

    def line(self, text: str) -> None: ...

    def preparing(self, progress: Progress) -> None: ...

    def evaluating(self, done: int, total: int, seconds_left: float | None) -> None: ...

    def training(self, steps: int, step: int) -> None: ...

    def record(self, record: Record) -> None: ...


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
) -> Publish:
    """What takes the records of the run to the display and to status.json."""
    existing = folder.checkpoints(run)
    newest = existing[-1] if existing else plan.resume_from
    status.resumed_from = folder.step_of(newest) if newest else None
    status.step, status.steps = status.resumed_from or 0, plan.steps
    status.write(run)
    display.training(status.steps, status.step)
    display.doing("starting to train")
    wait = STATUS_SECONDS if run.is_local else REMOTE_STATUS_SECONDS
    written = time.monotonic()
    expected = ["workers", "model", "first_step"]

    def publish(record: Record) -> None:
        nonlocal written
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
        elif kind == "checkpoint" and record["step"] == plan.steps:
            interrupts.saves = False
        if kind in ("train", "failure") and time.monotonic() - written >= wait:
            status.write(run)
            written = time.monotonic()

    return publish


def _mark(record: Record, expected: list[str], watch: Stopwatch) -> None:
    """Close the start-up part that a record ends."""
    ends = {"started": "workers", "status": "model", "train": "first_step"}.get(record["kind"])
    if record["kind"] == "generation" and "first_step" in expected:
        watch.mark("answers_before", record["time"])
    elif ends is not None and expected and ends == expected[0]:
        watch.mark(expected.pop(0), record["time"])


@contextmanager
def recorded(run: Store, status: Status, plan: Plan) -> Iterator[None]:
    """Write how training ended, whatever happens."""
    try:
        yield
        status.state, status.step = "finished", plan.steps
    except KeyboardInterrupt as stop:
        status.state, status.error = "interrupted", str(stop) or "interrupted by the user"
        status.step = step_of(status, read(run))  # a step may be in the log and not yet here
        raise
    except Exception as error:
        status.state = "failed"
        status.error = str(error) if isinstance(error, TailorError) else f"{type(error).__name__}: {error}"
        raise
    finally:
        status.ended = now()
        status.write(run)
