"""From the batches' results to figures, and to what is kept of each row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tailor.evaluate.batches import EvaluationBatch, Result
from tailor.evaluate.figures import PerRow
from tailor.evaluate.inputs import ModelInputs
from tailor.evaluate.task_inputs import Collected, TaskInputs
from tailor.evaluate.tasks.base import Outcome, Row, TaskEvaluator


@dataclass(frozen=True)
class Results:
    """figures: model -> figure -> what it is made of. rows: file -> one entry per row, with each model's part."""

    figures: dict[str, dict[str, PerRow]] = field(default_factory=dict)
    rows: dict[str, list[Row]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    """What tasks add to results.json beside figures."""
    notes: list[str] = field(default_factory=list)
    """Lines for the user."""


def results(
    evaluators: Sequence[TaskEvaluator[Any]],
    inputs: Mapping[str, ModelInputs],
    batches: Sequence[tuple[EvaluationBatch, TaskInputs]],
    done: Iterable[Result],
) -> Results:
    """Judge what the batches gave. Their results are taken one at a time, for embeddings may be more than fit."""
    collected: dict[tuple[str, int], Collected] = {
        (model, id(one)): one.collect() for model, own in inputs.items() for one in own.unique
    }
    for (batch, one), result in zip(batches, done, strict=True):
        collected[batch.model, id(one)].add(batch, result)
    outcomes = [
        {
            model: evaluator.judge(own.tasks[at], collected[model, id(own.tasks[at])])
            for model, own in inputs.items()
        }
        for at, evaluator in enumerate(evaluators)
    ]
    found = Results({model: {} for model in inputs})
    for evaluator, by_model in zip(evaluators, outcomes, strict=True):
        for model, outcome in by_model.items():
            found.figures[model].update(outcome.figures)
            _keep(found.rows, model, outcome)
        join(found.summary, evaluator.summary(by_model))
        found.notes.extend(next(iter(by_model.values())).notes)
    return found


def _keep(files: dict[str, list[Row]], model: str, outcome: Outcome) -> None:
    """Add a model's rows of one task to the file's. Tasks that share a file have the same rows in the same order."""
    if outcome.file is None or not outcome.rows:
        return
    kept = files.setdefault(outcome.file, [{} for _ in outcome.rows])
    for row, (shared, own) in zip(kept, outcome.rows, strict=True):
        models = row.pop("models", {})  # stays the last key
        row.update(shared)
        models.setdefault(model, {}).update(own)
        row["models"] = models


def join(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add to a mapping; where both have a mapping under a key, the two are joined."""
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            into[key].update(value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value
