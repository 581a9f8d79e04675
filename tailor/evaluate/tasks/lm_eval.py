"""Tasks of lm-eval (EleutherAI's harness), run as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailor.errors import ModelError
from tailor.evaluate import harness
from tailor.evaluate.batches import Computation, EvaluationBatch, Result, Worker
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.models import Subject
from tailor.evaluate.task_inputs import Collected, TaskInputs
from tailor.evaluate.tasks.base import Outcome, TaskEvaluator
from tailor.spec.tasks.lm_eval import LmEval

PART = "lm_eval"


def _run(worker: Worker, batch: EvaluationBatch) -> Result:
    with worker.language_model(batch.model) as model:
        return [harness.run(model.loaded, asked, worker.decoding.batch_size) for asked in batch.inputs]


LM_EVAL = Computation("lm_eval", _run)
"""Inputs: `harness.settings`. Per item a `harness.Report`."""


class LmEvalEvaluator(TaskEvaluator[LmEval]):
    def require(self) -> None:
        harness.check(self.spec)

    def check_model(self, model: Subject) -> None:
        if model.has_beacons:
            raise ModelError(
                f"{model.ref.url} has activation beacons, which lm-eval would leave out: it calls the plain model",
                hint="leave the task lm_eval out",
            )

    def inputs(self, rows: ModelRows) -> TaskInputs:
        asked = harness.settings(self.spec)
        return TaskInputs(
            asked,
            rows.tokenizer,
            lambda model, size: [
                EvaluationBatch(model, PART, LM_EVAL, (at,), (one,)) for at, one in enumerate(asked)
            ],
        )

    def judge(self, inputs: TaskInputs, found: Collected) -> Outcome:
        reports = list(found.of(PART).values())
        return Outcome(
            {name: made for report in reports for name, made in harness.figures(report).items()},
            "lm_eval.jsonl",
            harness.as_rows(reports),
            data=reports,
            notes=[line for report in reports for line in harness.left_out(report)],
        )

    def summary(self, outcomes: Mapping[str, Outcome]) -> Mapping[str, Any]:
        """What lm-eval itself reports, by task and model, with its tasks' versions."""
        tasks: dict[str, Any] = {}
        for model, outcome in outcomes.items():
            for report in outcome.data:
                task = tasks.setdefault(report["task"], {"versions": report["versions"], "reported": {}})
                task["reported"][model] = {key: one["value"] for key, one in report["reported"].items()}
        return {"lm_eval": {"version": harness.require_lm_eval().__version__, "tasks": tasks}}
