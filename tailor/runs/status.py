"""`status.json`: the state of a run, and the duration of each phase before its first step."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from tailor.layout import STATUS
from tailor.runs.lock import holder
from tailor.runs.log import Record, of_kind

if TYPE_CHECKING:
    from tailor.store import Store

State = Literal["running", "finished", "failed", "interrupted"]


@dataclass
class Status:
    """The state of a run. Times are ISO 8601 in UTC."""

    state: State
    started: str
    ended: str | None = None
    step: int = 0
    steps: int = 0
    error: str | None = None
    resumed_from: int | None = None
    """Step of the checkpoint from which the run resumed."""
    failures: list[dict[str, str]] = field(default_factory=list)
    """Time and error of each failure after which the workers were restarted."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds of each phase from the start of the command to the first step, in order."""

    def write(self, run: Store) -> None:
        run.write_json(STATUS, asdict(self))

    @classmethod
    def read(cls, run: Store) -> Status | None:
        return cls(**run.read_json(STATUS)) if run.exists(STATUS) else None


def state_of(run: Store, status: Status | None) -> str:
    """The state of a run: `stopped` if `status.json` says `running` but no process works on it, as after a kill."""
    if status is None:
        return "unknown"
    if status.state == "running" and holder(run) is None:
        return "stopped"
    return status.state


def step_of(status: Status, records: list[Record]) -> int:
    """The last step. Taken from the metrics, because `status.json` is written only every few seconds."""
    train = of_kind(records, "train")
    return int(train[-1]["step"]) if train else status.step
