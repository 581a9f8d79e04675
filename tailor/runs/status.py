"""`status.json`: how a run stands, and how long each part of it took."""

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
    """How a run stands. Times are ISO 8601 in UTC."""

    state: State
    started: str
    ended: str | None = None
    step: int = 0
    steps: int = 0
    error: str | None = None
    resumed_from: int | None = None
    """Step of the checkpoint that the run went on from."""
    failures: list[dict[str, str]] = field(default_factory=list)
    """Workers that failed and were started again: time and error of each."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds of each part from the command to the first step, in order."""

    def write(self, run: Store) -> None:
        run.write_json(STATUS, asdict(self))

    @classmethod
    def read(cls, run: Store) -> Status | None:
        return cls(**run.read_json(STATUS)) if run.exists(STATUS) else None


def state_of(run: Store, status: Status | None) -> str:
    """The run's state. One that says it is running, with no process at work on it, was stopped from outside."""
    if status is None:
        return "unknown"
    if status.state == "running" and holder(run) is None:
        return "stopped"
    return status.state


def step_of(status: Status, records: list[Record]) -> int:
    """The newest step: status.json is written every few seconds only."""
    train = of_kind(records, "train")
    return int(train[-1]["step"]) if train else status.step
