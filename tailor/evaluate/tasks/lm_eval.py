"""The evaluation task `lm_eval`: unmodified tasks of lm-eval (EleutherAI's evaluation harness)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailor.errors import ModelError
from tailor.evaluate import harness, harness_report
from tailor.evaluate.batches import Computation, EvaluationBatch, Result, Worker
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.models import EvaluatedModel
from tailor.evaluate.task_inputs import Collected, TaskInputs
from tailor.evaluate.tasks.base import Outcome, TaskEvaluator
from tailor.spec.rules.tasks.lm_eval import LENGTHS
from tailor.spec.tasks.lm_eval import LmEval

PART = "lm_eval"


def _run(worker: Worker, batch: EvaluationBatch) -> Result:
    with worker.language_model(batch.model) as model:
        return [
            harness.run(model.loaded, requested, worker.decoding.batch_size) for requested in batch.inputs
        ]


LM_EVAL = Computation("lm_eval", _run)
"""Inputs: `harness.settings`. Result per item: a `harness.Report`."""


class LmEvalEvaluator(TaskEvaluator[LmEval]):
    def require(self) -> None:
        harness.check(self.spec)

    def check_model(self, model: EvaluatedModel) -> None:
        if model.has_beacons:
            raise ModelError(
                f"lm_eval: {model.ref.url} has activation beacons, which lm-eval ignores: it calls the model without them",
                hint="remove the task lm_eval",
            )
        if model.is_prefix_lm:
            raise ModelError(
                f"lm_eval: {model.ref.url} was trained with method.generative_attention: prefix_lm, and lm-eval does not mark "
                "where a prompt ends",
                hint="remove the task lm_eval",
            )

    def inputs(self, rows: ModelRows) -> TaskInputs:
        requested, lengths = harness.settings(self.spec), self.spec.metadata.get(LENGTHS)
        return TaskInputs(
            requested,
            rows.tokenizer,
            lambda model, size: [
                EvaluationBatch(model, PART, LM_EVAL, (at,), (one,)) for at, one in enumerate(requested)
            ],
            exceeding=lengths if isinstance(lengths, list) else [],
        )

    def judge(self, inputs: TaskInputs, collected: Collected) -> Outcome:
        reports = list(collected.of(PART).values())
        return Outcome(
            {name: made for report in reports for name, made in harness_report.figures(report).items()},
            "lm_eval.jsonl",
            harness_report.as_rows(reports),
            data=reports,
            notes=[line for report in reports for line in harness_report.notes(report)],
        )

    def summary(self, outcomes: Mapping[str, Outcome]) -> Mapping[str, Any]:
        """The metrics as lm-eval reports them, by task and model, with the versions of the tasks; scores by length."""
        tasks: dict[str, Any] = {}
        scores: dict[str, dict[str, dict[int, float]]] = {}
        for model, outcome in outcomes.items():
            for report in outcome.data:
                task = tasks.setdefault(report["task"], {"versions": report["versions"], "reported": {}})
                task["reported"][model] = {key: one["value"] for key, one in report["reported"].items()}
                if found := harness_report.by_length(report):
                    scores.setdefault(report["task"], {})[model] = found
        by_length = {}
        for name, by_model in scores.items():
            lengths = sorted(set.intersection(*(set(own) for own in by_model.values())))
            if lengths:
                by_length[name] = {
                    "threshold": self.spec.threshold,
                    "lengths": lengths,
                    "scores": {model: [own[length] for length in lengths] for model, own in by_model.items()},
                }
        reported = {"version": harness.require_lm_eval().__version__, "tasks": tasks}
        return {"lm_eval": reported, "by_length": by_length}
