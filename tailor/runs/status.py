"""`status.json`: the state of a run, and the duration of each phase before its first step."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from tailor.layout import STATUS
from tailor.redaction import redacted_values
from tailor.runs.lock import holder
from tailor.runs.log import Record, of_kind
from tailor.store.json_files import Count, JsonFile, Moment, Number, made

if TYPE_CHECKING:
    from tailor.store import Store

State = Literal["running", "finished", "failed", "interrupted"]


class Failure(TypedDict):
    """A failure after which the workers were restarted."""

    time: str
    error: str


@dataclass
class Status:
    """The state of a run. Times are ISO 8601 in UTC."""

    state: State
    started: Moment
    ended: Moment | None = None
    step: Count = 0
    steps: Count = 0
    phase: str | None = None
    """What a running run does: `workers` (starts them), `model` (loads it), `reference`, `answers_before`,
    `retrieval_before`, `training`, `answers_after` or `artifact` (writes it)."""
    error: str | None = None
    resumed_from: Count | None = None
    """Step of the checkpoint from which the run resumed."""
    failures: list[Failure] = field(default_factory=list)
    timings: dict[str, Number] = field(default_factory=dict)
    """Seconds of each phase from the start of the command to the first step, in order."""

    def write(self, run: Store) -> None:
        STATUS_FILE.write(run, STATUS, redacted_values(asdict(self)))

    @classmethod
    def read(cls, run: Store) -> Status | None:
        return made(cls, STATUS_FILE.read(run, STATUS)) if run.exists(STATUS) else None


STATUS_FILE = JsonFile(
    Status, "remove {file} and run the recipe again: it continues from the last checkpoint"
)


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
