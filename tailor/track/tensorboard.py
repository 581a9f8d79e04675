"""The TensorBoard tracker writes event files to the run's folder: `tensorboard --logdir RUN` shows them."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from tailor.errors import StoreError
from tailor.layout import TENSORBOARD
from tailor.store import Periodic
from tailor.store.scratch import scratch
from tailor.track.figures import curves, with_letters

if TYPE_CHECKING:
    from tailor.store import Store

FLUSH_SECONDS = 10
_EVENTS = re.compile(r"events\.out\.tfevents\..+\.step-\d{8}")
"""The event files that this tracker writes."""
REMOTE_SHARE = 0.05
"""Maximum fraction of the time for copying to a remote store; to a slow store the files are copied less often."""


class TensorBoard:
    """Writes scalars named `train/loss`, `evaluation/loss`, `retrieval/recall_at_1` … by step.

    The event writer needs a local file; for a remote run folder the file is copied there every few seconds. Events are
    written in the caller's thread: after an error such as a full disk, tensorboardX's own thread blocks training forever.
    """

    def __init__(self, section: object, run: Store, *, after_step: int, warn: Callable[[str], None]) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._remote = None if run.is_local else run.join(TENSORBOARD)
        self._closing = ExitStack()
        if not after_step:
            events = run.join(TENSORBOARD)
            for name in events.names():
                if _EVENTS.fullmatch(name):
                    events.remove(name)
        self._folder = run.local_path(TENSORBOARD) if run.is_local else self._closing.enter_context(scratch())
        self._step = after_step
        self._event = Event
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Its default name has a resolution of one second, so the step makes the name unique.
            self._writer = EventsWriter(str(self._folder / "events"), f".step-{after_step:08d}")
        except OSError as error:
            raise self._error(error) from error
        if after_step:
            # TensorBoard then hides what an interrupted run wrote after its last checkpoint.
            self._put(step=after_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._flushed = time.monotonic()
        self._periodic = Periodic(self._copy, FLUSH_SECONDS, share=REMOTE_SHARE) if self._remote else None

    def write(self, record: dict[str, Any]) -> None:
        from tensorboardX.summary import scalar

        self._step = int(record.get("step", self._step))
        for kind, key, value in curves(record):
            # After a gradient overflow in fp16 the norm is infinite; a gap in the curve is clearer.
            if math.isfinite(value):
                self._put(step=self._step, summary=scalar(with_letters(f"{kind}/{key}"), value))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def close(self, *, finished: bool) -> None:
        self._flush()
        if self._periodic:
            self._periodic.close()
            self._copy()
        self._writer.close()
        self._closing.close()

    def _put(self, **content: Any) -> None:
        try:
            self._writer.write_event(self._event(wall_time=time.time(), **content))
        except OSError as error:
            raise self._error(error) from error

    def _flush(self) -> None:
        try:
            self._writer.flush()
        except OSError as error:
            raise self._error(error) from error
        self._flushed = time.monotonic()

    def _error(self, error: OSError) -> StoreError:
        return StoreError(
            f"TensorBoard events cannot be written to {self._folder}: {error.strerror or error}",
            hint="free some space, or set track.tensorboard: false; then run the same command again",
        )

    def _copy(self) -> None:
        assert self._remote is not None
        for file in self._folder.iterdir():
            self._remote.put_file(file, file.name)
