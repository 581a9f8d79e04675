"""What an evaluation asks of every task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any, Generic, TypeVar

from tailor.encode.template_arguments import with_arguments
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.errors import ExtensionError
from tailor.evaluate.figures import PerRow
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.models import Subject
from tailor.evaluate.task_inputs import Collected, TaskInputs
from tailor.spec.model import Model
from tailor.spec.tasks.base import EvaluationTask
from tailor.spec.tasks.rows import Questions, Texts

S = TypeVar("S", bound=EvaluationTask)
R = TypeVar("R", Questions, Texts)
Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a task found for one model."""

    figures: dict[str, PerRow]
    """Figure -> what it is made of, row by row."""
    file: str | None = None
    """The JSONL file of its rows, such as `answers.jsonl`. Tasks of one file add to the same rows."""
    rows: Sequence[tuple[Row, Row]] = ()
    """Per row what all models share of it, and what is this model's."""
    data: Any = None
    """Whatever `TaskEvaluator.summary` needs."""
    notes: Sequence[str] = ()
    """Lines for the user."""


@dataclass(frozen=True)
class FirstRows:
    """What a task may look at before training, of an evaluation that follows it."""

    model: Model
    template: str | None
    plain: bool
    """Questions go without a chat template."""
    count: int
    """Rows of each source that are read."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the chat template."""

    def of(self, data: R) -> R:
        """The same source, of which only the first rows are read."""
        return data.model_copy(update={"limit": min(data.limit or self.count, self.count)})

    @cached_property
    def tokenizer(self) -> Tokenizer:
        tokenizer = load_tokenizer(self.model.path, self.model.revision, self.template)
        return tokenizer if self.plain else with_arguments(tokenizer, self.arguments)


class TaskEvaluator(ABC, Generic[S]):
    """Evaluates one task of a suite. `spec` has its keys; `key` names it in messages, such as `tasks[0]`."""

    def __init__(self, spec: S, key: str) -> None:
        self.spec, self.key = spec, key

    def require(self) -> None:
        """TailorError when the task needs what is not installed here. Called first, and before training."""

    def check_model(self, model: Subject) -> None:
        """ModelError for a model that the task cannot evaluate."""

    def preflight(self, rows: FirstRows) -> None:
        """DataError for first rows of its own that cannot be read. Called before training."""

    @abstractmethod
    def inputs(self, rows: ModelRows) -> TaskInputs:
        """What a model computes. Called once per model."""

    @abstractmethod
    def judge(self, inputs: TaskInputs, found: Collected) -> Outcome:
        """The figures and rows of a model, from what its batches gave."""

    def summary(self, outcomes: Mapping[str, Outcome]) -> Mapping[str, Any]:
        """What it adds to results.json beside figures; mappings of one key are joined. outcomes: by model."""
        return {}


def make_evaluators(tasks: Iterable[EvaluationTask], prefix: str = "") -> list[TaskEvaluator[Any]]:
    """One for each task. ExtensionError for an implementation that cannot be loaded."""
    return [_implementation(task)(task, f"{prefix}tasks[{at}]") for at, task in enumerate(tasks)]


def _implementation(task: EvaluationTask) -> type[TaskEvaluator[Any]]:
    module, _, attribute = task.implementation.partition(":")
    try:
        found: type[TaskEvaluator[Any]] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ExtensionError(
            f"the task {task.name} cannot be loaded from {task.implementation}: {error}",
            hint="install what it needs, or leave the task out",
        ) from error
    return found
