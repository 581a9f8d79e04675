"""What each model of an evaluation computes: the same rows, rendered by the model's own template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tailor.errors import DataError
from tailor.evaluate.batches import EvaluationBatch
from tailor.evaluate.model_rows import ModelRows, Prepare
from tailor.evaluate.models import Subject
from tailor.evaluate.task_inputs import Location, TaskInputs
from tailor.evaluate.tasks.base import TaskEvaluator
from tailor.spec.suite import Suite


@dataclass(frozen=True)
class ModelInputs:
    """tasks: of each task of the suite, in order; tasks that share their inputs have the same object."""

    tasks: Sequence[TaskInputs]
    available: int | None = None
    """Evaluation rows that there are, of which `limit` were taken."""

    @property
    def unique(self) -> list[TaskInputs]:
        """Each of the inputs once."""
        return list({id(one): one for one in self.tasks}.values())

    @property
    def cut(self) -> int:
        """Rows that are not evaluated, because `on_long: chunk` cut them."""
        return sum(one.cut for one in self.unique)

    @property
    def short(self) -> int:
        """Rows that are not evaluated, because they are too short."""
        return sum(one.short for one in self.unique)

    def batches(self, model: str, batch_size: int) -> list[tuple[EvaluationBatch, TaskInputs]]:
        """The model's whole work, in a fixed order, each batch with the inputs that it belongs to."""
        return [(batch, one) for one in self.unique for batch in one.batches(model, batch_size)]

    def locations(self) -> list[Location]:
        """Where the rows come from: the same for all models that are compared."""
        return [place for one in self.unique for place in one.locations]


def gather(
    evaluators: Sequence[TaskEvaluator[Any]],
    suite: Suite,
    main: Subject,
    others: Sequence[Subject],
    prepare: Prepare,
) -> dict[str, ModelInputs]:
    """The inputs of every model, by its label. Raises DataError and what preparation raises."""

    def of(subject: Subject) -> ModelInputs:
        rows = ModelRows(suite, subject, main, prepare)
        made = ModelInputs([one.inputs(rows) for one in evaluators], rows.available)
        _check_room(made, subject)
        return made

    first = of(main)
    found = {main.label: first}
    for other in others:
        own = first if other.artifact.url == main.artifact.url else of(other)
        if own is not first and own.locations() != first.locations():
            raise DataError(
                f"compare: {other.ref.url} keeps other rows than {main.ref.url}, so that their figures could not "
                f"be compared ({_first_difference(first.locations(), own.locations())})",
                hint="raise max_length, or evaluate the two by themselves",
            )
        found[other.label] = own
    return found


def _check_room(inputs: ModelInputs, subject: Subject) -> None:
    positions = subject.positions()
    if positions is None:
        return
    if not subject.goes_beyond:
        asked = [length for one in inputs.unique for length in one.beyond]
        if asked and max(asked) > positions:
            raise DataError(
                f"{subject.ref.url} was made for {positions} positions and has no others, and lengths has {max(asked)}",
                hint=f"give lengths of at most {positions}",
            )
    for place, length in (pair for one in inputs.unique for pair in one.lengths):
        if length > positions:
            raise DataError(
                f"row {place['row']} of source {place['source']} needs {length} tokens, and {subject.ref.url} was "
                f"made for {positions} positions",
                hint="shorten the row, or lower data.max_length",
            )


def _first_difference(left: list[Location], right: list[Location]) -> str:
    for one, other in zip(left, right, strict=False):
        if one != other:
            return f"row {one['row']} of source {one['source']}, for example"
    return f"{len(left)} rows and {len(right)}"
