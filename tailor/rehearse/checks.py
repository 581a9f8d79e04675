"""The checks of a rehearsal: each is one phase of the recipe, by the functions of the commands."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailor.errors import DataError, StoreError, TrainingError
from tailor.layout import TOKENS
from tailor.onray.display import Display
from tailor.rehearse import reduced, twin
from tailor.rehearse.rehearsal import Rehearsal, temporary_prefix
from tailor.store import Store

if TYPE_CHECKING:
    from tailor.runs.log import Record


class Skip(Exception):
    """The recipe has nothing for this check. The text says why."""


def recipe(state: Rehearsal) -> str:
    """Read and validate the recipe."""
    from tailor.spec.load import load_recipe

    state.recipe = load_recipe(state.path, state.overrides)
    return f"{state.recipe.method.name} on {state.recipe.model.path}"


def cluster(state: Rehearsal) -> str:
    """Write the manifest for the cluster file."""
    if state.cluster is None:
        raise Skip("no --cluster")
    from pathlib import Path

    from tailor.kube import fit, manifest

    found = manifest.load_cluster(state.cluster)
    fitting = manifest.load_recipe(state.path, found, state.overrides)
    manifest.documents(fitting, found, kind="RayJob", stem=Path(state.path).stem, overrides=state.overrides)
    size = fit.size(fitting, found)
    return f"{max(size.pods, 1)} × {size.workers_per_pod} workers fit"


def secrets(state: Rehearsal) -> str:
    """Look for credentials, and for what the evaluation needs."""
    from tailor.doctor.checks import tokens
    from tailor.doctor.finding import Context
    from tailor.onray.evaluate import require

    findings = list(tokens.check(Context(state.recipe)))
    for one in findings:
        if one.status == "failed":
            raise StoreError(one.message, hint=one.hint or None)
    if state.recipe.evaluate.final is not None:
        require(state.recipe.evaluate.final)
    return "; ".join(one.message for one in findings) or "none needed"


def storage(state: Rehearsal) -> str:
    """Write, read, list and delete in the recipe's storage, below a temporary prefix."""
    from tailor.store.probe import probe

    state.prefix = temporary_prefix(state.recipe, state.stack)
    found = probe(Store(state.prefix))
    for right, error in found.denied:
        raise StoreError(f"save.to: cannot {right}: {error.message}", hint=error.hint)
    return f"{state.prefix} can be written, read, listed and deleted from"


def run_folder(state: Rehearsal) -> str:
    """Check that the run may start or resume in its folder. Nothing is written."""
    from tailor.runs import resume

    run = Store(state.recipe.save.to)
    if run.url.startswith("memory:"):
        return "in memory"
    resume.check_folder(state.recipe, run)
    origin = resume.check(state.recipe, run)
    if origin is not None:
        return f"resumes {origin.run} from step {origin.step}"
    return "resumes its run" if resume.has_progress(run) else "new"


def model(state: Rehearsal) -> str:
    """Build and adapt the whole model without weights."""
    from tailor.onray.planning import examine
    from tailor.plan.outline import NoOutline
    from tailor.train import warm_start

    if state.recipe.model.warm_start is not None:
        warm_start.check(state.recipe.model)
    state.outline = examine(state.recipe)
    if isinstance(state.outline, NoOutline):
        return "not examined: transformers cannot build it without its weights"
    return f"{sum(state.outline.parameters.values()) / 1e6:,.1f}M parameters"


def data(state: Rehearsal) -> str:
    """Prepare the first rows of the real sources, at their real lengths."""
    from tailor.artifacts.passage_scorer import scorer_of
    from tailor.encode.prepare import prepare
    from tailor.evaluate import source_rows

    recipe = state.recipe
    counts = [
        sum(1 for _ in source_rows.first([source], f"data.train[{at}]", reduced.ROWS + 1))
        for at, source in enumerate(recipe.data.train)
        if source.limit is None or source.limit > reduced.ROWS
    ]
    whole = max(counts, default=0) <= reduced.ROWS
    overrides = reduced.sample(recipe, whole=whole)
    state.sampled = reduced.with_overrides(recipe, overrides)
    prepared = prepare(
        state.sampled.data,
        state.sampled.model,
        state.sampled.method,
        Store(state.prefix).join(TOKENS).url,
        scorer=scorer_of(state.sampled.data),
    )
    state.tokens = prepared.tokens
    state.changed += overrides
    train, held = (prepared.tokens.manifest["report"][split] for split in ("train", "evaluation"))
    if recipe.data.holdout is not None and not held["examples"]:
        raise DataError(
            f"data.holdout: {recipe.data.holdout:g} selects no evaluation row from {train['examples']:,} rows",
            hint="raise data.holdout, or give rows in data.evaluation",
        )
    if not train["examples"]:
        raise DataError("no training row remains after preparation", hint="see `tailor data report`")
    return f"{train['examples']:,} training and {held['examples']:,} evaluation examples of the first rows"


def plan(state: Rehearsal) -> str:
    """Plan the run with the real model and the sample."""
    from tailor.onray import cluster as clusters
    from tailor.onray.planning import make_plan

    run = Store(state.prefix).join("planned")
    assert state.tokens is not None
    hardware = clusters.hardware(state.sampled.scale, None)
    made = make_plan(state.sampled, state.tokens, run, hardware, outline=state.outline)
    return f"the longest row has {made.row_length:,} tokens"


def evaluation_rows(state: Rehearsal) -> str:
    """Check the first rows of the final evaluation's tasks, and the judgments of all retrieval."""
    from tailor.evaluate import preflight
    from tailor.evaluate.retrieval.collection import read_collection

    evaluate = state.sampled.evaluate
    tasks = list(evaluate.final.tasks) if evaluate.final is not None else []
    searched = {f"evaluate.final.tasks.{at}": task for at, task in enumerate(tasks) if task.embeds}
    if evaluate.retrieval is not None:
        searched["evaluate.retrieval"] = evaluate.retrieval
    if not tasks and not searched:
        raise Skip("no evaluate.final")
    for key, one in searched.items():
        passages = read_collection(one.data, f"{key}.data").passages
        if passages > reduced.PASSAGES:
            state.corpora[key] = passages
    assert state.tokens is not None
    if evaluate.final is not None:
        preflight.check(evaluate.final, state.sampled, plain=state.tokens.template is None)
        preflight.check_split(evaluate.final, state.sampled, state.tokens)
    if state.corpora:
        overrides = reduced.without_corpora(state.sampled, list(state.corpora))
        state.sampled = reduced.with_overrides(state.sampled, overrides)
        state.changed += overrides
    return ", ".join(
        [*(task.name for task in tasks), *["evaluate.retrieval"] * (evaluate.retrieval is not None)]
    )


def tiny_model(state: Rehearsal) -> str:
    """Make the twin of the base."""
    from pathlib import Path

    return twin.make(state.recipe, Path(state.twin))


def train(state: Rehearsal) -> str:
    """Train the twin without an interruption."""
    from tailor.onray import run

    assert state.tokens is not None
    longest = _row_length(state)
    overrides = reduced.small(state.sampled, base=state.twin, prefix=state.prefix, longest=longest)
    state.small = reduced.with_overrides(state.sampled, overrides)
    state.changed += overrides
    state.outcome = run.execute(_without_final(state.small), _Silent())
    first, *_, last = losses(state.outcome.records)
    return f"{reduced.STEPS} steps, loss {first[1]:.3f} to {last[1]:.3f}"


def resumed(state: Rehearsal) -> str:
    """Train again in another folder, stop at a checkpoint, and resume: the losses must be equal."""
    from tailor.onray import run

    if threading.current_thread() is not threading.main_thread():
        raise Skip("signals need the main thread")
    assert state.outcome is not None
    again = _without_final(reduced.with_overrides(state.small, [("save.to", f"{state.prefix}/resumed")]))
    stopper = _Stopper()
    try:
        run.execute(again, stopper)
    except KeyboardInterrupt:
        if stopper.stopped_at is None:  # the user's
            raise
    if stopper.stopped_at is None:
        raise TrainingError("the run did not stop at the requested checkpoint")
    outcome = run.execute(again, _Silent())
    whole, parts = losses(state.outcome.records), losses(outcome.records)
    if whole != parts:
        step, expected, found = next(
            ((a[0], a[1], b[1]) for a, b in zip(whole, parts, strict=False) if a != b),
            (len(parts), len(whole), len(parts)),
        )
        raise TrainingError(
            f"after a stop at step {stopper.stopped_at} the resumed run differs at step {step}: "
            f"loss {found:g} instead of {expected:g}",
            hint="a resumed run would not continue the curve; report it with the recipe",
        )
    return f"stopped after step {stopper.stopped_at}, resumed with equal losses"


def evaluate(state: Rehearsal) -> str:
    """Run the recipe's final evaluation on the trained twin."""
    from tailor.onray import run

    if state.small.evaluate.final is None:
        raise Skip("no evaluate.final")
    evaluated = run.final_evaluation(state.small, _Silent())
    return f"{len(evaluated.results['figures'])} metrics"


def merge(state: Rehearsal) -> str:
    """Merge the twin's adapter, and compare the result with the trained model."""
    from tailor.artifacts.merge import merge

    if state.small.model.adapter is None:
        raise Skip("no model.adapter")
    merge(state.small.save.to, trust=_trust(state))
    return "equals the trained model"


def export(state: Rehearsal) -> str:
    """Export the twin in each form."""
    from tailor.export.folder import export
    from tailor.export.request import Request

    if state.small.model.beacon is not None and state.forms == [HUGGINGFACE]:
        raise Skip("no other tool can load beacons")
    for form in state.forms:
        weights = state.recipe.export.weights if form == HUGGINGFACE else None
        request = Request(form, weights, trust=_trust(state))
        export(state.small.save.to, f"{state.prefix}/export-{form}", request)
    return ", ".join(state.forms)


HUGGINGFACE = "huggingface"


@dataclass(frozen=True)
class Check:
    """A check. needs: the checks that must not fail before it."""

    name: str
    run: Any
    needs: tuple[str, ...] = ("recipe",)


CHECKS = (
    Check("recipe", recipe, ()),
    Check("cluster", cluster, ()),
    Check("secrets", secrets),
    Check("storage", storage),
    Check("run folder", run_folder),
    Check("model", model),
    Check("data", data, ("storage",)),
    Check("plan", plan, ("model", "data")),
    Check("evaluation rows", evaluation_rows, ("data",)),
    Check("tiny model", tiny_model, ("model",)),
    Check("train", train, ("plan", "tiny model")),
    Check("resume", resumed, ("train",)),
    Check("evaluate", evaluate, ("train", "evaluation rows")),
    Check("merge", merge, ("train",)),
    Check("export", export, ("train",)),
)
"""They run in this order."""


def losses(records: list[Record]) -> list[tuple[int, float]]:
    """(step, training loss), in order."""
    return [(one["step"], one["loss"]) for one in records if one["kind"] == "train"]


def _row_length(state: Rehearsal) -> int:
    """The length of the twin's training rows: some of the sample's examples must fit."""
    assert state.tokens is not None
    beacon, longest = state.recipe.model.beacon, state.recipe.data.max_length
    least = reduced.LENGTH if beacon is None else 2 * beacon.window
    if state.recipe.method.joins:
        return min(longest, least)
    lengths = sorted(len(ids) for _, ids in state.tokens.split("train").rows())
    enough = lengths[min(len(lengths), 4 * reduced.STEPS) - 1]
    return min(longest, max(least, min(enough, reduced.MAX_LENGTH)))


def _without_final(recipe: Any) -> Any:
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"final": None})})


def _trust(state: Rehearsal) -> Any:
    from tailor.models.own_code import Trust

    return Trust.of_model(state.small.model)


class _Silent(Display):
    """A display that shows nothing."""


class _Stopper(Display):
    """Sends Ctrl-C to the run after the step `STOP`."""

    stopped_at: int | None = None

    def record(self, record: Record) -> None:
        if record["kind"] == "train" and record["step"] == reduced.STOP and self.stopped_at is None:
            self.stopped_at = reduced.STOP
            signal.raise_signal(signal.SIGINT)
