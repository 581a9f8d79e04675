"""`metrics.jsonl`: all metric records of a run, one JSON object per line, each with its wall-clock `time`."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tailor.errors import StoreError
from tailor.layout import METRICS
from tailor.runs.records import HEADER, HEADER_FILE, RECORD
from tailor.store import Periodic
from tailor.store.json_files import VERSION, lines

if TYPE_CHECKING:
    from tailor.store import Store

Record = dict[str, Any]

RESUMED = "resumed"
"""Kind of the record of a resumed run whose earlier part had got further than its checkpoint."""
REMOTE_FLUSH_SECONDS = 10.0
"""On an object store every append rewrites the whole file, so lines are collected for this long."""
REMOTE_SHARE = 0.05
"""Maximum fraction of the time for this writing; the log of a long run is written less often."""


def log_text(records: Iterable[Record]) -> str:
    """The content of `metrics.jsonl` with these records."""
    header = to_json({"kind": HEADER, VERSION: HEADER_FILE.version})
    return "".join(f"{line}\n" for line in (header, *map(to_json, records)))


def to_json(record: Record) -> str:
    """A record as one line of JSON. NaN and infinity become null, as JSON has neither."""
    return json.dumps(finite(record), allow_nan=False, separators=(",", ":"), default=str)


def finite(value: Any) -> Any:
    """JSON values with null in place of NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


class MetricsLog:
    """Writes the log. after_step: the step of the checkpoint from which the run resumes; later records are removed.

    allowed: called before each write. StoreError when it returns False, because another process has taken over the run.
    """

    def __init__(
        self, run: Store, *, after_step: int = 0, allowed: Callable[[], bool] = lambda: True
    ) -> None:
        self._run, self._allowed = run, allowed
        self._check()
        earlier = read(run) if after_step else []
        kept = before(earlier, after_step)
        self.sent = _sent(earlier, len(kept))
        """kind -> step of the last record that earlier parts of the run have written, and so passed to their trackers."""
        if self.sent:
            # In the log, because a resumed run may be killed before it has made all of these steps again.
            kept.append(
                {"kind": RESUMED, "step": after_step, "sent": self.sent, "time": round(time.time(), 3)}
            )
        self._waiting = ""
        self._written = log_text(kept)
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
        """Write all records to the file and to disk (fsync). StoreError when another process has taken over the run."""
        if not self._write_waiting():
            self._check()
        self._run.sync(METRICS)

    def _write_waiting(self) -> bool:
        """Write the collected lines. Returns whether there were any, in which case the lock has been checked too."""
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
                hint="`tailor runs` shows its state",
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
    """The records up to the one about the checkpoint of `step`; without such a record, up to the last record of `step`."""
    kept: list[Record] = []
    for record in records:
        if record.get("step", 0) > step:
            break
        kept.append(record)
    made = [at for at, record in enumerate(kept) if record["kind"] == "checkpoint" and record["step"] == step]
    return kept[: made[-1] + 1] if made else kept


def _sent(records: Sequence[Record], kept: int) -> dict[str, int]:
    """kind -> last step of the records from number `kept` on, and of those that were removed at earlier resumes."""
    sent: dict[str, int] = {}
    last = 0
    for at, record in enumerate(records):
        last = record.get("step", last)
        steps = record["sent"] if record["kind"] == RESUMED else {record["kind"]: last} if at >= kept else {}
        for kind, step in steps.items():
            if kind != "status":
                sent[kind] = max(step, sent.get(kind, 0))
    return sent


def read(run: Store) -> list[Record]:
    """All records of a run, oldest first. An unfinished last line is left out."""
    if not run.exists(METRICS):
        return []
    complete, _, _rest = run.read_text(METRICS).rpartition("\n")
    records = lines(complete, run.url_of(METRICS), RECORD)
    if records and records[0]["kind"] == HEADER:
        HEADER_FILE.parse(to_json(records.pop(0)).encode(), run.url_of(METRICS))
    return records


def of_kind(records: Iterable[Record], kind: str) -> list[Record]:
    return [record for record in records if record.get("kind") == kind]
