"""`metrics.jsonl`: every metric record of a run, one JSON object per line, each with its wall-clock `time`."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tailor.errors import StoreError
from tailor.layout import METRICS
from tailor.store import Periodic

if TYPE_CHECKING:
    from tailor.store import Store

Record = dict[str, Any]

REMOTE_FLUSH_SECONDS = 10.0
"""An object store rewrites the whole object for each append, so lines are gathered there."""
REMOTE_SHARE = 0.05
"""Of the time, what such writing may take: a long run's log is written less often."""


def to_json(record: Record) -> str:
    """One line of JSON. A NaN or an infinity becomes null, since JSON has neither."""
    return json.dumps(_finite(record), allow_nan=False, separators=(",", ":"), default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class MetricsLog:
    """The writing side. `after_step` is the step of the checkpoint that the run goes on from: what came later is removed.

    `allowed` is asked before each writing: StoreError when the run belongs to another process by now.
    """

    def __init__(
        self, run: Store, *, after_step: int = 0, allowed: Callable[[], bool] = lambda: True
    ) -> None:
        self._run, self._allowed = run, allowed
        self._check()
        kept = before(read(run), after_step) if after_step else []
        self._waiting = ""
        self._written = "".join(to_json(record) + "\n" for record in kept)
        run.write_text(METRICS, self._written)
        self._text_lock, self._file_lock = threading.Lock(), threading.Lock()
        self._periodic = (
            None if run.is_local else Periodic(self._write_waiting, REMOTE_FLUSH_SECONDS, share=REMOTE_SHARE)
        )

    def write(self, record: Record) -> None:
        with self._text_lock:
            self._waiting += to_json(record) + "\n"
        if self._periodic is None:
            self._write_waiting()

    def flush(self) -> None:
        """Returns when everything so far is in the file, and would outlive a loss of power.

        StoreError when the run belongs to another process by now.
        """
        if not self._write_waiting():
            self._check()
        self._run.sync(METRICS)

    def _write_waiting(self) -> bool:
        """Whether there was anything to write, and so the lock was asked."""
        with self._file_lock:
            with self._text_lock:
                text, self._waiting = self._waiting, ""
            if not text:
                return False
            try:
                self._put(text)
            except BaseException:
                with self._text_lock:
                    self._waiting = text + self._waiting
                raise
            return True

    def _check(self) -> None:
        if not self._allowed():
            raise StoreError(
                f"another process has taken over the run at {self._run.url}",
                hint="`tailor runs` shows how it stands",
            )

    def _put(self, text: str) -> None:
        self._check()
        if self._run.is_local:
            self._run.append_text(METRICS, text)
        else:
            self._run.write_text(METRICS, self._written + text)
            self._written += text

    def close(self) -> None:
        if self._periodic is not None:
            self._periodic.close()
        self._write_waiting()


def before(records: Sequence[Record], step: int) -> list[Record]:
    """The records up to the making of the checkpoint of `step`, or up to the first one of a later step."""
    kept: list[Record] = []
    for record in records:
        if record.get("step", 0) > step:
            break
        kept.append(record)
    made = [at for at, record in enumerate(kept) if record["kind"] == "checkpoint" and record["step"] == step]
    return kept[: made[-1] + 1] if made else kept


def read(run: Store) -> list[Record]:
    """Every record of a run, oldest first. A last line that is still being written is left out."""
    if not run.exists(METRICS):
        return []
    *lines, _rest = run.read_text(METRICS).split("\n")
    return [_record(run, number, line) for number, line in enumerate(lines, 1) if line]


def _record(run: Store, number: int, line: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise StoreError(
            f"{run.url_of(METRICS)}:{number}: this line is no record of a run", hint="remove the line"
        )
    return record


def of_kind(records: Iterable[Record], kind: str) -> list[Record]:
    return [record for record in records if record.get("kind") == kind]
