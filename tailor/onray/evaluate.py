"""Runs an evaluation from its rows to the report: `tailor evaluate`, and `evaluate.final` of a recipe."""

from __future__ import annotations

import json
import posixpath
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import yaml

from tailor import machine
from tailor.artifacts import output
from tailor.data.token_store import TokenStore
from tailor.errors import DataError, GateError, ModelError, StoreError
from tailor.evaluate import context_lengths, figures, gate, strata
from tailor.evaluate.batches import EvaluationBatch
from tailor.evaluate.chat_endpoint import ChatEndpoint
from tailor.evaluate.inputs import gather
from tailor.evaluate.models import EvaluatedModel, compared, evaluated_models, find_model
from tailor.evaluate.progress import ResultParts, fingerprint
from tailor.evaluate.results import join, results
from tailor.evaluate.served_model import require_generation, served_runner
from tailor.evaluate.tasks.base import make_evaluators
from tailor.layout import EVALUATION, FIGURES, RESULTS, SUITE, TOKENS
from tailor.models.own_code import NOTHING, Trust
from tailor.onray.display import Display
from tailor.onray.planning import tokens_root
from tailor.onray.sharing import choose_workers, compute
from tailor.runs import environment, evaluations
from tailor.runs.lock import lock
from tailor.runs.report import heatmap, page
from tailor.runs.words import now
from tailor.spec.data import Data
from tailor.spec.load import Dumper
from tailor.spec.methods.union import Method
from tailor.spec.model import Model
from tailor.spec.rules import suite as suite_rules
from tailor.spec.rules.keys import Keys, path_of
from tailor.spec.suite import Suite
from tailor.store import Store, cache_folder
from tailor.store.publication import Publication
from tailor.store.scratch import sweep

METHOD = (
    "paired bootstrap over rows: {confidence:.0%} percentile interval, {samples} resamples that are the same for all "
    "models, seed {seed}; p-values: paired approximate randomization, two-sided"
)


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation."""

    folder: Store
    """The folder with its files."""
    results: dict[str, Any]
    """The content of its `results.json`."""

    def require(self) -> None:
        """Raise a GateError if a condition of `fail_if` is met. The message lists every such metric."""
        if self.results["failed"]:
            raise GateError(
                f"{self.results['name']}: {'; '.join(self.results['failed'])}",
                hint=f"see the metrics and answers in {self.folder.url}",
            )


def evaluate(
    target: str,
    suite: Suite,
    display: Display,
    *,
    name: str,
    to: str | None = None,
    address: str | None = None,
    trust: Trust = NOTHING,
    verbose: bool = False,
    endpoint: ChatEndpoint | None = None,
) -> Evaluated:
    """Evaluate a run or model and publish the results at `to`, by default in `evaluation/` of the run folder.

    endpoint: a server with this model, which computes the answers; then only tasks of generated answers, and no comparison.
    `name`: name of the evaluation if the suite has none. trust: own code of the models that may run. Finished batches are stored in the folder `NAME.unfinished`,
    so that the same call resumes after it was killed. Raises a TailorError for errors that the user can fix, but no
    GateError: the caller shows the results first and then calls `Evaluated.require`.
    """
    machine.wait_without_spinning()
    sweep()
    began = time.monotonic()
    evaluators = make_evaluators(suite.tasks)
    for evaluator in evaluators:
        evaluator.require()
    main = find_model(target)
    name = "-".join(part for part in (suite.name or name, main.derived_folder) if part)
    parent, folder_name = _output_folder(main, name, to)
    with ExitStack() as stack:
        parent.make()
        unfinished = parent.join(f"{folder_name}.unfinished")
        stack.enter_context(lock(unfinished, display.line))
        display.doing("reading the rows")
        models = [model.trusting(trust) for model in evaluated_models(main, suite)]
        main = models[0]
        labels = dict(zip(compared(main, suite), (model.label for model in models[1:]), strict=True))
        gate.require_compared(suite.fail_if, labels)
        for evaluator in evaluators:
            if evaluator.spec.needs_comparison and not labels:
                raise DataError(
                    f"{evaluator.key}: {evaluator.spec.name} needs a model to compare with, and compare names none",
                    hint="add one: compare: [PATH]",
                )
            for model in models:
                if model.is_encoder and not (evaluator.spec.embeds or evaluator.spec.ranks):
                    raise ModelError(
                        f"{evaluator.key}: {evaluator.spec.name} needs a model that generates, and {model.ref.url} is an encoder",
                        hint="use the task retrieval",
                    )
                evaluator.check_model(model)
        inputs = gather(evaluators, suite, main, models[1:], _preparation(main))
        if endpoint is not None:
            for evaluator, own in zip(evaluators, inputs[main.label].tasks, strict=True):
                require_generation(evaluator.spec.name, own.batches(main.label, suite.decoding.batch_size))
        columns = [
            strata.column_of(evaluator, inputs[main.label].tasks[at], suite, main)
            for at, evaluator in enumerate(evaluators)
        ]
        work = [pair for model in models for pair in inputs[model.label].batches(model.label, suite.decoding)]
        batches = [batch for batch, _ in work]
        identity = {model.label: model.identity() for model in models}
        if endpoint is not None:
            identity["served"] = [endpoint.base_url, endpoint.model]
        parts = ResultParts(unfinished, fingerprint(batches, suite.decoding, identity))
        if parts.discarded:
            display.line("removed an unfinished evaluation with different rows, models or settings")
        if endpoint is not None:
            workers, runner = 1, served_runner(endpoint)
        else:
            workers, runner = choose_workers(suite.workers, address, display, stack, verbose)
        refs = [model.ref for model in models]
        done = compute(batches, refs, suite.decoding, runner, parts, display, display.evaluating)
        display.doing("scoring")
        outcome = results(evaluators, inputs, work, done, parts)
        table = figures.table(outcome.figures, suite.intervals)
        report = {
            "name": name,
            "made": now(),
            "seconds": round(time.monotonic() - began, 1),
            "workers": workers,
            "models": {model.label: _describe(model) for model in models},
            "rows": {
                **inputs[main.label].counts(),
                **{file.removesuffix(".jsonl"): len(rows) for file, rows in outcome.rows.items()},
            },
            "intervals": METHOD.format(**suite.intervals.model_dump()),
            "decoding": suite.decoding.model_dump(),
            "figures": table,
            "definitions": {task.name: task.definition for task in suite.tasks},
            "beacons": {
                model.label: ratios
                for model in models
                if (ratios := model.compression(_of(model, batches), suite.decoding)) is not None
            },
            "strata": [
                {
                    "task": evaluator.spec.name,
                    "by": column[0],
                    "values": strata.table(column[1], own, suite.intervals),
                }
                for evaluator, column, own in zip(evaluators, columns, outcome.by_task, strict=True)
                if column is not None
            ],
            "grids": {},
            "positions": {},
            "fail_if": suite.fail_if,
            "failed": list(gate.broken_bounds(suite.fail_if, table, labels)),
            "environment": environment.describe(),
        }
        join(report, outcome.summary)
        by_length = context_lengths.with_mean(report.pop("by_length", {}), report["grids"])
        claimed = {model.label: model.positions() for model in models} if by_length else {}
        report["effective_lengths"] = {
            task: context_lengths.effective(one, claimed) for task, one in by_length.items()
        }
        report["grids"] = {
            task: context_lengths.with_intervals(grid, suite.intervals.confidence)
            for task, grid in report["grids"].items()
        }
        for line in outcome.notes:
            display.line(line)
        with Publication(parent, folder_name) as made:
            for file, rows in outcome.rows.items():
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                (made.folder / file).write_text("".join(lines), encoding="utf-8")
            (made.folder / SUITE).write_text(resolved(suite, name), encoding="utf-8")
            (made.folder / RESULTS).write_text(evaluations.RESULTS_FILE.text(report), encoding="utf-8")
            (made.folder / FIGURES).write_bytes(evaluations.draw(report))
            for file, png in heatmap.pictures(report).items():
                (made.folder / file).write_bytes(png)
    parts.remove()
    if main.run is not None and to is None:
        page.write(main.run)
    return Evaluated(parent.join(folder_name), report)


def require(suite: Suite) -> None:
    """Raise a TailorError if something that a task needs is missing or unknown: now, not after hours of training."""
    for evaluator in make_evaluators(suite.tasks):
        evaluator.require()


def resolved(suite: Suite, name: str) -> str:
    """YAML text of an evaluation file that repeats the evaluation, with all defaults and without unused keys."""
    values = {**suite.model_dump(mode="json"), "name": name}
    for key, _ in list(suite_rules.unused(Keys(values, set()), "")):
        *above, last = path_of(key)
        section: Any = values
        for step in above:
            section = section[step]
        section.pop(last, None)
    text: str = yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text


def _output_folder(main: EvaluatedModel, name: str, to: str | None) -> tuple[Store, str]:
    """(parent folder, name) of the folder for the results."""
    if to is not None:
        folder = Store(to)
        if folder.is_file() or (folder.names() and not folder.exists(RESULTS)):
            raise StoreError(
                f"--to {to} already exists, and is not an evaluation",
                hint="choose a folder that does not exist yet",
            )
        return output.parent_of(to), posixpath.basename(folder.url.rstrip("/"))
    if main.run is None:
        raise StoreError(
            f"{main.ref.url} is not a run folder, so there is no default folder for the results",
            hint="set an output folder with --to",
        )
    return main.run.join(EVALUATION), name


def _preparation(main: EvaluatedModel) -> Any:
    """A function that prepares evaluation rows, stored with the tokens of the run or in the cache folder."""
    root = str(cache_folder() / TOKENS)
    if main.run is not None and main.recipe is not None:
        root = tokens_root(main.recipe, main.run)

    def prepared(data: Data, model: Model, method: Method) -> TokenStore:
        from tailor.artifacts.passage_scorer import scorer_of
        from tailor.encode.prepare import prepare

        tokens = prepare(data, model, method, root, scorer=scorer_of(data)).tokens
        if not len(tokens.split("evaluation")):
            raise DataError(
                "preparation dropped every evaluation row", hint="choose other rows in data.evaluation"
            )
        return tokens

    return prepared


def _of(model: EvaluatedModel, batches: Sequence[EvaluationBatch]) -> list[EvaluationBatch]:
    return [batch for batch in batches if batch.model == model.label]


def _describe(model: EvaluatedModel) -> dict[str, Any]:
    return {
        "url": model.ref.url,
        "artifact": posixpath.basename(model.artifact.url),
        "without_adapter": model.ref.without_adapter,
    }
