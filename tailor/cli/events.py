"""The events that `tailor run --json` writes, one JSON object per line. The last one is `End` of `tailor.cli.output`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict

from tailor import __version__
from tailor.cli.display import Display
from tailor.cli.output import Document, JsonStdout, Raw
from tailor.cli.plan import PlanDocument
from tailor.runs.evaluations import Results

if TYPE_CHECKING:
    from tailor.onray.run import Outcome
    from tailor.plan import Plan

Record = dict[str, Any]
Figure = float | None
"""A number; null if it is not finite."""


class _Event(Document):
    time: float
    """Seconds since the epoch."""


class _Metrics(_Event):
    """The method of training may add metrics, which are numbers."""

    model_config = ConfigDict(extra="allow")


class Start(_Event):
    """The recipe is valid, and the run begins or resumes."""

    event: Literal["start"] = "start"
    tailor: str
    """Version of tailor."""
    recipe: str
    run: str
    """Path or URL of the run folder."""


class Message(_Event):
    """A status line, for people."""

    event: Literal["message"] = "message"
    message: str


class Planned(_Event):
    """The data is prepared, and training will start. With `scale.workers` as a range, `workers` may change later."""

    event: Literal["plan"] = "plan"
    plan: Raw[PlanDocument]
    """The plan, like `tailor plan --json`."""
    resumed_from: int
    """Step after which training starts."""


class Step(_Metrics):
    """One optimizer step."""

    event: Literal["step"] = "step"
    step: int
    epoch: float
    loss: Figure
    learning_rate: float
    grad_norm: Figure
    tokens: int
    supervised_tokens: int
    tokens_per_second: float
    step_seconds: float
    data_seconds: float


class Evaluated(_Metrics):
    """The evaluation loss after a step."""

    event: Literal["evaluation"] = "evaluation"
    step: int
    loss: Figure
    supervised_tokens: int


class Retrieval(_Metrics):
    """Metrics of `evaluate.retrieval` after a step."""

    event: Literal["retrieval"] = "retrieval"
    step: int
    queries: int
    passages: int


class Generated(_Event):
    """Answers were generated (`evaluate.generation`) before or after training."""

    event: Literal["generation"] = "generation"
    when: Literal["before", "after"]
    exact_match: float
    """Fraction of the answers that equal their reference."""
    count: int
    cut: int
    """Evaluation rows that are not asked because `data.on_long` cut them."""
    without_question: int
    """Evaluation rows that are not asked because they have no question."""


class Checkpoint(_Event):
    """A checkpoint is being written. Its folder is complete when it contains `COMMIT`."""

    event: Literal["checkpoint"] = "checkpoint"
    step: int
    url: str


class Artifact(_Event):
    """The adapter or model is written."""

    event: Literal["artifact"] = "artifact"
    url: str
    made_from: int | None
    """Step of its weights; null if the run was finished before."""


class FailedWorkers(_Event):
    """Workers failed, and the run restarts from its last checkpoint."""

    event: Literal["failure"] = "failure"
    step: int
    error: str


class FinalEvaluation(_Event):
    """The evaluation of the finished run (`evaluate.final`)."""

    event: Literal["final_evaluation"] = "final_evaluation"
    folder: str
    results: Raw[Results]


EVENTS: dict[str, type[_Event]] = {
    "train": Step,
    "evaluation": Evaluated,
    "retrieval": Retrieval,
    "generation": Generated,
    "checkpoint": Checkpoint,
    "artifact": Artifact,
    "failure": FailedWorkers,
}
"""Kind of a metric record -> its event."""

Event = (
    Start
    | Message
    | Planned
    | Step
    | Evaluated
    | Retrieval
    | Generated
    | Checkpoint
    | Artifact
    | FailedWorkers
    | FinalEvaluation
)


class EventDisplay(Display):
    """A display of a run that also writes its events."""

    def __init__(self, stdout: JsonStdout) -> None:
        super().__init__()
        self._stdout = stdout

    def started(self, recipe: str, run: str) -> None:
        self._stdout.write(Start(time=time.time(), tailor=__version__, recipe=recipe, run=run))

    def planned(self, plan: Plan, step: int) -> None:
        self._stdout.write(Planned(time=time.time(), plan=plan.as_dict(), resumed_from=step))

    def line(self, text: str) -> None:
        super().line(text)
        self._stdout.write(Message(time=time.time(), message=text))

    def record(self, record: Record) -> None:
        super().record(record)
        if (event := EVENTS.get(record["kind"])) is not None:
            values = {key: value for key, value in record.items() if key != "kind"}
            self._stdout.write({"event": event.model_fields["event"].default, "time": time.time(), **values})

    def ended(self, outcome: Outcome) -> None:
        """The artifact of a run that was finished before, and the results of the final evaluation."""
        from tailor.store import run_folder

        kind = run_folder.artifact(outcome.run)
        if outcome.already_finished and kind is not None:
            url = outcome.run.join(kind).url
            self._stdout.write(Artifact(time=time.time(), url=url, made_from=None))
        if outcome.evaluated is not None:
            folder, results = outcome.evaluated.folder.url, outcome.evaluated.results
            self._stdout.write(FinalEvaluation(time=time.time(), folder=folder, results=results))
