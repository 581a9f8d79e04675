"""Executes a run: data preparation, plan, training, report. All of its output is in the run folder, `save.to`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tailor import machine
from tailor.evaluate import preflight
from tailor.layout import ARTIFACTS, DATA_REPORT, ENVIRONMENT, PLAN, RECIPE, REPORT
from tailor.models.own_code import Trust
from tailor.onray import cluster as clusters
from tailor.onray import trainer
from tailor.onray.display import Display
from tailor.onray.evaluate import Evaluated, evaluate, require
from tailor.onray.interrupts import Interrupts
from tailor.onray.jobs import require_lasting
from tailor.onray.kept_tokens import kept_tokens
from tailor.onray.placement import wait_for_nodes
from tailor.onray.planning import (
    examine,
    examine_data,
    examine_evaluations,
    examine_machine,
    make_plan,
    notes,
    tokens_root,
)
from tailor.onray.progress import Stopwatch, publisher, recorded
from tailor.onray.supervisor import DriverContext
from tailor.redaction import redacted_values
from tailor.runs import environment, evaluations, resume
from tailor.runs.lock import lock
from tailor.runs.log import Record, read
from tailor.runs.origin import Origin, begin, changed
from tailor.runs.report import page
from tailor.runs.status import Status
from tailor.runs.words import now
from tailor.spec.load import resolved_yaml
from tailor.store import Store, run_files, run_folder
from tailor.store.publication import require_replaceable
from tailor.store.scratch import sweep

if TYPE_CHECKING:
    from tailor.data.token_store import TokenStore
    from tailor.encode.inputs import Inputs
    from tailor.encode.prepare import Progress
    from tailor.plan import Plan
    from tailor.spec.recipe import Recipe

STOPPING = "stopping after this step and saving a checkpoint; a second signal stops at once"


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    run: Store
    status: Status
    records: list[Record]
    already_finished: bool = False
    """Whether the run was already finished, so that nothing was done."""
    evaluated: Evaluated | None = None
    """The final evaluation (`evaluate.final`), if this call made it."""


def execute(recipe: Recipe, display: Display, *, verbose: bool = False) -> Outcome:
    """Run a recipe from its data to its artifact and report, or resume its unfinished run.

    Raises a TailorError for errors that the user can fix, and KeyboardInterrupt when a signal ended the run.
    In all cases, status.json contains how the run ended.
    """
    machine.wait_without_spinning()
    sweep()
    if recipe.evaluate.final is not None:
        require(recipe.evaluate.final)
    outcome = _train(recipe, display, verbose=verbose)
    final = recipe.evaluate.final
    if final is None or (
        outcome.already_finished and (final.name or evaluations.FINAL) in evaluations.names(outcome.run)
    ):
        return outcome
    evaluated = final_evaluation(recipe, display, verbose=verbose)
    return replace(outcome, evaluated=evaluated)


def final_evaluation(recipe: Recipe, display: Display, *, verbose: bool = False) -> Evaluated:
    """Run `evaluate.final` of a recipe whose run is finished. See `evaluate`."""
    assert recipe.evaluate.final is not None
    return evaluate(
        Store(recipe.save.to).url,
        recipe.evaluate.final,
        display,
        name=evaluations.FINAL,
        address=recipe.scale.address,
        trust=Trust.of_model(recipe.model),
        verbose=verbose,
    )


def _train(recipe: Recipe, display: Display, *, verbose: bool) -> Outcome:
    """Everything except the final evaluation."""
    run = Store(recipe.save.to)
    require_lasting(recipe)
    resume.check_folder(recipe, run)
    if recipe.model.warm_start is not None and not resume.has_progress(run):
        from tailor.train import warm_start

        warm_start.check(recipe.model)
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts(lambda: display.line(STOPPING)))
        attempt = stack.enter_context(lock(run, display.line))
        origin = resume.check(recipe, run)
        earlier = Status.read(run)
        if earlier is not None and earlier.state == "finished" and origin is None:
            if not run.exists(REPORT):
                trainer.clear(run)
                page.write(run)
            return Outcome(run, earlier, read(run), already_finished=True)
        for kind in ARTIFACTS:  # now, not after hours of training
            require_replaceable(run, kind)
        status = Status(state="running", started=now())
        watch = Stopwatch(status.timings)

        def waiting(text: str) -> None:
            display.line(text)
            display.doing("waiting for nodes")

        display.doing("checking the model")
        outline = examine(recipe)  # before Ray starts, which would have to be stopped again
        examine_machine(recipe)
        for note in notes(recipe):
            display.line(f"note: {note}")
        watch.mark("check_model")
        display.doing("checking the data")
        kept = kept_tokens(recipe)
        if kept is None:
            inputs = examine_data(recipe)
        else:
            display.line(f"note: {kept.note}")
            examine_evaluations(recipe, plain=kept.tokens.template is None)
        watch.mark("check_data")
        starting = None
        if not clusters.in_process(recipe.scale):
            starting = stack.enter_context(clusters.BackgroundStart(recipe.scale, verbose=verbose))
            watch.mark("import_ray")
        if kept is None:
            tokens = _prepare(recipe, inputs, run, starting, display, interrupts, verbose)
        else:
            tokens = kept.tokens
            _show_data(recipe, tokens, "already prepared", display)
        if recipe.evaluate.final is not None:
            preflight.check_split(recipe.evaluate.final, recipe, tokens)
        watch.mark("prepare")
        cluster = None
        if starting is not None:
            display.doing(
                "starting Ray" if clusters.address(recipe.scale) is None else "joining the Ray cluster"
            )
            cluster = starting.wait()
            interrupts.reinstall()
            display.line(_ray_line(cluster, starting.seconds))
            watch.mark("ray")
        if origin is not None:
            from tailor.data.facts import train_order

            origin = resume.with_data(origin, run, tokens, train_order(tokens, recipe))
            if origin is None and earlier is not None and earlier.state == "finished":
                return Outcome(run, earlier, read(run), already_finished=True)
        if cluster is not None:
            cluster = wait_for_nodes(recipe.scale, cluster, waiting)
            watch.mark("machines")
            display.doing("detecting the hardware")
        hardware = clusters.hardware(recipe.scale, cluster, waiting)
        plan = make_plan(recipe, tokens, run, hardware, origin, outline=outline)
        resume.check_plan(plan, run, origin)
        for line in [*_changes(run, origin), *plan.notes()]:
            display.line(line)
        if origin is not None:
            begin(run, Store(origin.run), origin)
            status.write(run)  # the run may have been finished before the change
            run.remove(
                REPORT
            )  # it describes the run before the change; a finished run without a report gets one
        _write_inputs(run, recipe, plan, tokens)
        watch.mark("plan")
        with recorded(run, status, plan, attempt) as update:
            publish = publisher(plan, run, status, watch, display, interrupts, update)
            driver = DriverContext(publish, interrupts, attempt, verbose)
            if not trainer.fit(plan, recipe, driver, cluster=cluster):
                raise interrupts.error()
        page.write(run)
    return Outcome(run, status, read(run))


def _changes(run: Store, origin: Origin | None) -> list[str]:
    """Status lines about what has changed since the run started: the recipe (`origin`) and the environment."""
    lines: list[str] = []
    if origin is not None:
        lines.append(f"resuming {origin.run} from step {origin.step} with a changed recipe:")
        lines += [f"  {change}" for change in changed(origin)]
        if origin.first_step == origin.step:
            lines.append("  the training data starts from the beginning again")
    previous = run_files.environment(run) if run_folder.checkpoints(run) else {}
    return lines + environment.differences(previous)


def _prepare(
    recipe: Recipe,
    inputs: Inputs,
    run: Store,
    starting: clusters.BackgroundStart | None,
    display: Display,
    interrupts: Interrupts,
    verbose: bool,
) -> TokenStore:
    from tailor.artifacts.passage_scorer import scorer_of
    from tailor.encode.prepare import prepare
    from tailor.onray.prepare import runner_by_size

    def preparing(progress: Progress) -> None:
        interrupts.reinstall()  # Ray may have started in the meantime and replaced the handlers
        display.preparing(progress)

    display.doing("preparing data")
    began = time.monotonic()
    with ExitStack() as stack:

        def connect() -> None:
            (starting or stack.enter_context(clusters.BackgroundStart(recipe.scale, verbose=verbose))).wait()
            interrupts.reinstall()

        prepared = prepare(
            recipe.data,
            recipe.model,
            recipe.method,
            tokens_root(recipe, run),
            inputs=inputs,
            scorer=scorer_of(recipe.data),
            runner=runner_by_size(connect, on_cluster=starting is not None),
            progress=preparing,
        )
    how = "already prepared" if prepared.reused else f"prepared in {time.monotonic() - began:.1f} s"
    _show_data(recipe, prepared.tokens, how, display)
    return prepared.tokens


def _show_data(recipe: Recipe, tokens: TokenStore, how: str, display: Display) -> None:
    from tailor.encode.report import notes
    from tailor.encode.unused import unused_lines

    report = tokens.manifest["report"]
    for line in [*data_lines(report, how), *unused_lines(report), *notes(report, recipe.data.holdout)]:
        display.line(line)


def data_lines(report: dict[str, Any], how: str) -> list[str]:
    """Status lines about the data: one with the totals, and one for each source with dropped or truncated rows.

    `report`: the report of preparation. `how`: `prepared in 3.7 s` or `already prepared`.
    """
    train, evaluation = report["train"], report["evaluation"]
    held_out = f", {evaluation['examples']:,} evaluation examples" if evaluation["examples"] else ""
    lines = [
        (
            f"data {how}: {train['examples']:,} training examples with {train['tokens']:,} tokens "
            f"({train['supervised_tokens']:,} supervised){held_out}"
        )
    ]
    for source in report["sources"]:
        lost = [
            f"{loss['count']:,} {reason.replace('_', ' ')} (first: {loss['first'][0][0]})"
            for kind in ("unreadable", "dropped", "removed")
            for reason, loss in source.get(kind, {}).items()
        ]
        lost += [f"{source['truncated']:,} truncated"] if source["truncated"] else []
        if lost:
            lines.append(f"  {source['path']}: {source['rows']:,} rows, of which {', '.join(lost)}")
    return lines


def _ray_line(cluster: clusters.Cluster, seconds: float) -> str:
    verb = "started Ray" if cluster.is_local else "joined the Ray cluster"
    return f"{verb} in {seconds:.1f} s: {cluster.resources}"


def _write_inputs(run: Store, recipe: Recipe, plan: Plan, tokens: TokenStore) -> None:
    """Write the plan, the resolved recipe, the data report and the environment into the run folder."""
    # First the plan, then the recipe: a folder with both is a run folder, also after a kill in between.
    run_files.PLAN_FILE.write(run, PLAN, plan.as_dict())
    run.write_text(RECIPE, resolved_yaml(recipe))
    data: dict[str, Any] = {
        "fingerprint": tokens.fingerprint,
        "tokens": tokens.url,
        "template": tokens.template and tokens.template["name"],
    }
    report = redacted_values({**data, **tokens.manifest["report"]})
    run_files.DATA_FILE.write(run, DATA_REPORT, report)
    run_files.ENVIRONMENT_FILE.write(run, ENVIRONMENT, environment.describe())
