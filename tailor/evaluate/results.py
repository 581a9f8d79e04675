"""Turns the results of batches into figures and into the rows of the result files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tailor.evaluate.batches import EvaluationBatch, Result
from tailor.evaluate.figures import PerRow
from tailor.evaluate.inputs import ModelInputs
from tailor.evaluate.task_inputs import Collected, TaskInputs
from tailor.evaluate.tasks.base import Outcome, Replies, Row, TaskEvaluator


@dataclass(frozen=True)
class Results:
    """The results of an evaluation.

    figures: model -> figure name -> its sums per row. rows: file -> one entry per row, with the values of each model.
    """

    figures: dict[str, dict[str, PerRow]] = field(default_factory=dict)
    rows: dict[str, list[Row]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    """Further content of results.json, added by the tasks."""
    notes: list[str] = field(default_factory=list)
    """Lines for the user."""
    by_task: list[dict[str, dict[str, PerRow]]] = field(default_factory=list)
    """The figures of each task, in order: model -> figure name -> its sums per row."""


def results(
    evaluators: Sequence[TaskEvaluator[Any]],
    inputs: Mapping[str, ModelInputs],
    batches: Sequence[tuple[EvaluationBatch, TaskInputs]],
    done: Iterable[Result],
    replies: Replies,
) -> Results:
    """Compute the figures and rows of every task from the results of the batches.

    done: the results in the order of `batches`. They are consumed one at a time, because the embeddings of a corpus may
    not fit into memory. replies: to the requests that tasks send to other servers.
    """
    collected: dict[tuple[str, int], Collected] = {
        (model, id(one)): one.collect() for model, own in inputs.items() for one in own.unique
    }
    for (batch, one), result in zip(batches, done, strict=True):
        collected[batch.model, id(one)].add(batch, result)
    outcomes = [
        evaluator.compare(
            {
                model: evaluator.judge(own.tasks[at], collected[model, id(own.tasks[at])])
                for model, own in inputs.items()
            },
            replies,
        )
        for at, evaluator in enumerate(evaluators)
    ]
    found = Results({model: {} for model in inputs})
    for evaluator, by_model in zip(evaluators, outcomes, strict=True):
        found.by_task.append({model: outcome.figures for model, outcome in by_model.items()})
        for model, outcome in by_model.items():
            found.figures[model].update(outcome.figures)
            _keep(found.rows, model, outcome)
        names = [set(outcome.figures) for outcome in by_model.values()]
        found.notes.extend(
            f"{name} is left out: not every model has it"
            for name in sorted(set().union(*names) - set.intersection(*names))
        )
        join(found.summary, evaluator.summary(by_model))
        found.notes.extend(next(iter(by_model.values())).notes)
    return found


def _keep(files: dict[str, list[Row]], model: str, outcome: Outcome) -> None:
    """Add one model's rows of one task to the rows of its file. Tasks that share a file have the same rows in order."""
    if outcome.file is None or not outcome.rows:
        return
    kept = files.setdefault(outcome.file, [{} for _ in outcome.rows])
    for row, (shared, own) in zip(kept, outcome.rows, strict=True):
        models = row.pop("models", {})  # stays the last key
        row.update(shared)
        models.setdefault(model, {}).update(own)
        row["models"] = models


def join(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Update `into` with `more`. When both have a mapping under one key, the two are merged."""
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            into[key].update(value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value
