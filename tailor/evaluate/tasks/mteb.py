"""The evaluation task `mteb`: unmodified tasks of the Massive Text Embedding Benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from tailor.evaluate import benchmarks
from tailor.evaluate.batches import Computation, EvaluationBatch, Result, Worker
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.models import EvaluatedModel
from tailor.evaluate.retrieval.embedders import require_embeddings
from tailor.evaluate.task_inputs import Collected, TaskInputs
from tailor.evaluate.tasks.base import Outcome, TaskEvaluator
from tailor.spec.tasks.mteb import Mteb

PART = "mteb"


def _run(worker: Worker, batch: EvaluationBatch) -> Result:
    return [
        benchmarks.run(partial(worker.vectors, batch.model, requested["dimension"]), requested, batch.model)
        for requested in batch.inputs
    ]


MTEB = Computation("mteb", _run)
"""Inputs: `benchmarks.settings`. Result per item: a `benchmarks.Report`."""


class MtebEvaluator(TaskEvaluator[Mteb]):
    def require(self) -> None:
        benchmarks.load_tasks(self.spec)

    def check_model(self, model: EvaluatedModel) -> None:
        require_embeddings(model.ref.embeds_like or model.artifact.url)

    def inputs(self, rows: ModelRows) -> TaskInputs:
        requested = benchmarks.settings(self.spec)
        return TaskInputs(
            requested,
            rows.tokenizer,
            lambda model, size: [
                EvaluationBatch(model, PART, MTEB, (at,), (one,)) for at, one in enumerate(requested)
            ],
        )

    def judge(self, inputs: TaskInputs, collected: Collected) -> Outcome:
        reports = list(collected.of(PART).values())
        return Outcome(
            {name: made for report in reports for name, made in benchmarks.figures(report).items()},
            data=reports,
        )

    def summary(self, outcomes: Mapping[str, Outcome]) -> Mapping[str, Any]:
        """All scores as MTEB reports them, by task and model."""
        tasks: dict[str, Any] = {}
        for model, outcome in outcomes.items():
            for report in outcome.data:
                tasks.setdefault(report["task"], {})[model] = report["scores"]
        return {"mteb": {"version": benchmarks.require_mteb().__version__, "tasks": tasks}}
