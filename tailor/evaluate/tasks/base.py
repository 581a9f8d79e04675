"""The interface of an evaluation task: its inputs for a model, and its figures from their results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any, Generic, Protocol, TypeVar

from tailor.encode.template_arguments import with_arguments
from tailor.encode.tokenizer import Tokenizer, model_tokenizer
from tailor.errors import ExtensionError
from tailor.evaluate.figures import PerRow
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.models import EvaluatedModel
from tailor.evaluate.task_inputs import Collected, TaskInputs
from tailor.spec.model import Model
from tailor.spec.tasks.base import EvaluationTask
from tailor.spec.tasks.rows import Questions, Texts

S = TypeVar("S", bound=EvaluationTask)
R = TypeVar("R", Questions, Texts)
Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The results of a task for one model."""

    figures: dict[str, PerRow]
    """Figure name -> its sums per row."""
    file: str | None = None
    """The JSONL file of its rows, such as `answers.jsonl`. Tasks with the same file add keys to the same rows."""
    rows: Sequence[tuple[Row, Row]] = ()
    """(fields shared by all models, fields of this model) of each row."""
    data: Any = None
    """Anything that `TaskEvaluator.summary` needs."""
    notes: Sequence[str] = ()
    """Notes for the user, one line each."""


@dataclass(frozen=True)
class FirstRows:
    """What the preflight check of a task may read before training."""

    model: Model
    template: str | None
    plain: bool
    """Whether prompts are plain text, without a chat template."""
    count: int
    """Number of rows of each source that are read."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the chat template."""

    def of(self, data: R) -> R:
        """The same source, limited to its first rows."""
        return data.model_copy(update={"limit": min(data.limit or self.count, self.count)})

    @cached_property
    def tokenizer(self) -> Tokenizer:
        tokenizer = model_tokenizer(self.model, self.template)
        return tokenizer if self.plain else with_arguments(tokenizer, self.arguments)


class Replies(Protocol):
    """Replies to requests, kept until the evaluation is complete."""

    def reply(self, request: str) -> str | None:
        """The reply that was kept. None if there is none."""

    def keep(self, request: str, reply: str) -> None:
        """Keep the reply to a request."""


class TaskEvaluator(ABC, Generic[S]):
    """Evaluates one task of a suite. `spec` has its keys; `key` names it in messages, such as `tasks[0]`."""

    def __init__(self, spec: S, key: str) -> None:
        self.spec, self.key = spec, key

    def require(self) -> None:
        """TailorError when the task needs a package that is not installed. Called first, and before training."""

    def check_model(self, model: EvaluatedModel) -> None:
        """ModelError for a model that the task cannot evaluate."""

    def preflight(self, rows: FirstRows) -> None:
        """DataError when the first rows of its own data cannot be read. Called before training."""

    @abstractmethod
    def inputs(self, rows: ModelRows) -> TaskInputs:
        """What one model computes. Called once per model."""

    @abstractmethod
    def judge(self, inputs: TaskInputs, collected: Collected) -> Outcome:
        """The figures and rows of one model, from the results of its batches."""

    def compare(self, outcomes: Mapping[str, Outcome], replies: Replies) -> Mapping[str, Outcome]:
        """The outcomes of all models, by label, the evaluated one first. For figures that need the answers of several."""
        return outcomes

    def summary(self, outcomes: Mapping[str, Outcome]) -> Mapping[str, Any]:
        """Further content of results.json; mappings under the same key are merged. outcomes: by model label."""
        return {}


def make_evaluators(tasks: Iterable[EvaluationTask], prefix: str = "") -> list[TaskEvaluator[Any]]:
    """The evaluator of each task. ExtensionError for an implementation that cannot be loaded."""
    return [_implementation(task)(task, f"{prefix}tasks[{at}]") for at, task in enumerate(tasks)]


def _implementation(task: EvaluationTask) -> type[TaskEvaluator[Any]]:
    module, _, attribute = task.implementation.partition(":")
    try:
        found: type[TaskEvaluator[Any]] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ExtensionError(
            f"the task {task.name} cannot be loaded from {task.implementation}: {error}",
            hint="install the package that provides it, or remove the task",
        ) from error
    return found
