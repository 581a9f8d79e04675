"""The inputs of each model of an evaluation: the same rows, rendered with the model's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tailor.data.split import RowId
from tailor.errors import DataError
from tailor.evaluate.batches import EvaluationBatch, sampled
from tailor.evaluate.model_rows import ModelRows, Prepare
from tailor.evaluate.models import EvaluatedModel
from tailor.evaluate.task_inputs import Location, TaskInputs
from tailor.evaluate.tasks.base import TaskEvaluator
from tailor.spec.suite import Decoding, Suite


@dataclass(frozen=True)
class ModelInputs:
    """The inputs of one model. tasks: one per task of the suite, in order; tasks that share inputs have the same object."""

    tasks: Sequence[TaskInputs]
    available: int | None = None
    """Number of evaluation rows before `limit`; None when no task reads them."""

    @property
    def unique(self) -> list[TaskInputs]:
        """The distinct inputs, in order."""
        return list({id(one): one for one in self.tasks}.values())

    def counts(self) -> dict[str, int | None]:
        """Evaluation rows: `available` before `limit`; `used`; and those that are not asked because they were `cut` or have
        no question. `short`: texts of the tasks' own that are too short.
        """
        return {
            "available": self.available,
            "used": max((one.used for one in self.unique), default=0),
            **{
                name: sum(getattr(one, name) for one in self.unique)
                for name in ("cut", "without_question", "short")
            },
        }

    def batches(self, model: str, decoding: Decoding) -> list[tuple[EvaluationBatch, TaskInputs]]:
        """All batches of the model, in a fixed order, each with the inputs that it belongs to."""
        return [
            (sample, one)
            for one in self.unique
            for batch in one.batches(model, decoding.batch_size)
            for sample in sampled(batch, decoding.samples)
        ]

    def locations(self) -> list[Location]:
        """The location of every row. Compared models must have the same ones."""
        return [location for one in self.unique for location in one.locations]


def gather(
    evaluators: Sequence[TaskEvaluator[Any]],
    suite: Suite,
    main: EvaluatedModel,
    others: Sequence[EvaluatedModel],
    prepare: Prepare,
) -> dict[str, ModelInputs]:
    """The inputs of every model, by its label.

    Raises DataError when the models would be evaluated on different rows, or when a row does not fit into a model's
    positions; and the errors of data preparation.
    """

    def inputs_of(model: EvaluatedModel) -> ModelInputs:
        rows = ModelRows(suite, model, main, prepare)
        model_inputs = ModelInputs([one.inputs(rows) for one in evaluators], rows.available)
        _check_lengths(model_inputs, model)
        return model_inputs

    first = inputs_of(main)
    found = {main.label: first}
    for other in others:
        own = first if other.artifact.url == main.artifact.url else inputs_of(other)
        if own is not first and own.locations() != first.locations():
            raise DataError(
                f"compare: {other.ref.url} and {main.ref.url} keep different evaluation rows, so their figures cannot be "
                f"compared ({_first_difference(first.locations(), own.locations())})",
                hint="raise max_length so that no row is dropped, or evaluate each model on its own",
            )
        found[other.label] = own
    return found


def _check_lengths(inputs: ModelInputs, model: EvaluatedModel) -> None:
    positions = model.positions()
    if positions is None:
        return
    if not model.can_exceed_positions:
        requested = [length for one in inputs.unique for length in one.exceeding]
        if requested and max(requested) > positions:
            raise DataError(
                f"lengths: {max(requested)} tokens do not fit into the {positions} positions of {model.ref.url}, whose position "
                "embeddings cannot extrapolate",
                hint=f"give lengths of at most {positions}",
            )
    for location, length in (pair for one in inputs.unique for pair in one.lengths):
        if length > positions:
            raise DataError(
                f"{_words(location)} has {length} tokens, but {model.ref.url} has only {positions} positions",
                hint="shorten the row, or lower data.max_length",
            )


def _first_difference(left: list[Location], right: list[Location]) -> str:
    for one, other in zip(left, right, strict=False):
        if one != other:
            return f"first difference: {_words(one)}"
    return f"{len(left)} rows and {len(right)} rows"


def _words(location: Location) -> str:
    """A row's location for messages."""
    if "file" in location:
        return str(RowId(**location))
    return ", ".join(f"{key} {value}" for key, value in location.items())
