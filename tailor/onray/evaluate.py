"""A whole evaluation: rows, answers, figures, report. `tailor evaluate` and `evaluate.final` of a recipe."""

from __future__ import annotations

import json
import posixpath
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import yaml

from tailor import machine
from tailor.artifacts import output
from tailor.data.token_store import TokenStore
from tailor.errors import DataError, GateError, StoreError
from tailor.evaluate import figures
from tailor.evaluate.batches import EvaluationBatch, Result, Runner
from tailor.evaluate.inputs import gather
from tailor.evaluate.models import EvaluatedModel, evaluated_models, find_model
from tailor.evaluate.progress import ResultParts, compute_remaining, fingerprint
from tailor.evaluate.results import join, results
from tailor.evaluate.tasks.base import make_evaluators
from tailor.layout import EVALUATION, FIGURES, RESULTS, SUITE, TOKENS
from tailor.onray.display import Display
from tailor.onray.planning import tokens_root
from tailor.onray.sharing import choose_workers
from tailor.runs import environment, evaluations
from tailor.runs.lock import lock
from tailor.runs.report import heatmap, page
from tailor.runs.words import duration, now
from tailor.spec.data import Data
from tailor.spec.load import Dumper
from tailor.spec.methods.union import Method
from tailor.spec.model import Model
from tailor.spec.rules import suite as suite_rules
from tailor.spec.rules.keys import Keys, path_of
from tailor.spec.suite import Suite
from tailor.store import Store, cache_folder
from tailor.store.publication import Publication

METHOD = (
    "percentiles of a paired bootstrap over rows: {samples} draws with replacement, the same for all models, "
    "{confidence:.0%} of them inside, seed {seed}"
)


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation. folder: where it lies; results: its results.json."""

    folder: Store
    results: dict[str, Any]

    def require(self) -> None:
        """GateError when a bound of `fail_if` holds, with every such figure named."""
        if self.results["failed"]:
            raise GateError(
                f"{self.results['name']}: {'; '.join(self.results['failed'])}",
                hint=f"the figures and answers are in {self.folder.url}",
            )


def evaluate(
    target: str,
    suite: Suite,
    display: Display,
    *,
    name: str,
    to: str | None = None,
    address: str | None = None,
    verbose: bool = False,
) -> Evaluated:
    """Evaluate a run or model and publish the results at `to`, or in the run's `evaluation/`.

    `name`: where the suite gives none. Raises a TailorError for what the user can hint, but no GateError:
    that is the caller's, after the results were shown (`Evaluated.require`).
    """
    machine.wait_without_spinning()
    began = time.monotonic()
    evaluators = make_evaluators(suite.tasks)
    for evaluator in evaluators:
        evaluator.require()
    main = find_model(target)
    name = "-".join(part for part in (suite.name or name, main.derived_folder) if part)
    parent, folder_name = _place(main, name, to)
    with ExitStack() as stack:
        parent.make()
        unfinished = parent.join(f"{folder_name}.unfinished")
        stack.enter_context(lock(unfinished, display.line))
        display.doing("reading the rows")
        models = evaluated_models(main, suite)
        for evaluator in evaluators:
            for model in models:
                evaluator.check_model(model)
        inputs = gather(evaluators, suite, main, models[1:], _preparation(main))
        size = suite.decoding.batch_size
        work = [pair for model in models for pair in inputs[model.label].batches(model.label, size)]
        batches = [batch for batch, _ in work]
        identity = {model.label: model.identity() for model in models}
        parts = ResultParts(unfinished, fingerprint(batches, suite.decoding, identity))
        if parts.discarded:
            display.line("an unfinished evaluation of other rows, models or settings was removed")
        workers, runner = choose_workers(suite.workers, address, display, stack, verbose)
        done = _do(batches, models, suite, runner, parts, display)
        judged = results(evaluators, inputs, work, done)
        table = figures.table(judged.figures, suite.intervals)
        found = {
            "name": name,
            "made": now(),
            "seconds": round(time.monotonic() - began, 1),
            "workers": workers,
            "models": {model.label: _describe(model) for model in models},
            "rows": {
                "available": inputs[main.label].available,
                "cut": inputs[main.label].cut,
                "short": inputs[main.label].short,
                **{file.removesuffix(".jsonl"): len(rows) for file, rows in judged.rows.items()},
            },
            "intervals": METHOD.format(**suite.intervals.model_dump()),
            "decoding": suite.decoding.model_dump(),
            "figures": table,
            "grids": {},
            "positions": {},
            "fail_if": suite.fail_if,
            "failed": list(figures.broken_bounds(suite.fail_if, table)),
            "environment": environment.describe(),
        }
        join(found, judged.summary)
        for line in judged.notes:
            display.line(line)
        with Publication(parent, folder_name) as made:
            for file, rows in judged.rows.items():
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                (made.folder / file).write_text("".join(lines), encoding="utf-8")
            (made.folder / SUITE).write_text(resolved(suite, name), encoding="utf-8")
            text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
            (made.folder / RESULTS).write_text(text + "\n", encoding="utf-8")
            (made.folder / FIGURES).write_bytes(evaluations.draw(found))
            for file, png in heatmap.pictures(found).items():
                (made.folder / file).write_bytes(png)
    parent.remove(f"{folder_name}.unfinished")
    if main.run is not None and to is None:
        page.write(main.run)
    return Evaluated(parent.join(folder_name), found)


def require(suite: Suite) -> None:
    """TailorError when something that a task needs is not installed or not known: before hours of training."""
    for evaluator in make_evaluators(suite.tasks):
        evaluator.require()


def resolved(suite: Suite, name: str) -> str:
    """The evaluation file that repeats it, defaults written out."""
    values = {**suite.model_dump(mode="json"), "name": name}
    for key, _ in list(suite_rules.unused(Keys(values, set()), "")):
        *above, last = path_of(key)
        section: Any = values
        for step in above:
            section = section[step]
        section.pop(last, None)
    text: str = yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text


def _place(main: EvaluatedModel, name: str, to: str | None) -> tuple[Store, str]:
    """The folder around the results, and their name in it."""
    if to is not None:
        whole = Store(to)
        if whole.is_file() or (whole.names() and not whole.exists(RESULTS)):
            raise StoreError(
                f"--to {to} is there already, and is no evaluation",
                hint="name a folder that is not there yet",
            )
        return output.parent_of(to), posixpath.basename(whole.url.rstrip("/"))
    if main.run is None:
        raise StoreError(
            f"{main.ref.url} is no run, so there is no place for the results",
            hint="name a folder for them with --to",
        )
    return main.run.join(EVALUATION), name


def _preparation(main: EvaluatedModel) -> Any:
    root = str(cache_folder() / TOKENS)
    if main.run is not None and main.recipe is not None:
        root = tokens_root(main.recipe, main.run)

    def prepared(data: Data, model: Model, method: Method) -> TokenStore:
        from tailor.artifacts.passage_scorer import scorer_of
        from tailor.encode.prepare import prepare

        tokens = prepare(data, model, method, root, scorer=scorer_of(data)).tokens
        if not len(tokens.split("evaluation")):
            raise DataError("no evaluation row is left after preparation", hint="name other rows")
        return tokens

    return prepared


def _do(
    batches: Sequence[EvaluationBatch],
    models: Sequence[EvaluatedModel],
    suite: Suite,
    runner: Runner,
    parts: ResultParts,
    display: Display,
) -> Iterator[Result]:
    """The result of every batch, one after the other: all are computed and written before the first is read."""
    sizes = [len(batch.items) for batch in batches]
    remaining = parts.remaining(len(batches))
    total, left = sum(sizes), sum(sizes[number] for number in remaining)
    if left < total:
        display.line(f"going on: {total - left:,} of {total:,} rows were done before")
    began = time.monotonic()
    display.doing("loading the model")
    if left:
        refs = [model.ref for model in models]
        found = runner(refs, suite.decoding, [batches[number] for number in remaining])
        done = compute_remaining(remaining, sizes, found, parts.write, display.evaluating)
        display.line(f"{done:,} rows in {duration(time.monotonic() - began)}")
    return map(parts.read, range(len(batches)))


def _describe(model: EvaluatedModel) -> dict[str, Any]:
    return {
        "url": model.ref.url,
        "artifact": posixpath.basename(model.artifact.url),
        "without_adapter": model.ref.without_adapter,
    }
