"""A whole run: tokens, plan, training, report. The folder at `save.to` holds everything that it leaves."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tailor import machine
from tailor.evaluate import preflight
from tailor.layout import DATA_REPORT, ENVIRONMENT, PLAN, RECIPE, REPORT
from tailor.onray import cluster as clusters
from tailor.onray import trainer
from tailor.onray.display import Display
from tailor.onray.evaluate import Evaluated, evaluate, require
from tailor.onray.interrupts import Interrupts
from tailor.onray.jobs import require_lasting
from tailor.onray.placement import await_machines
from tailor.onray.planning import make_plan, tokens_root
from tailor.onray.progress import Stopwatch, publisher, recorded
from tailor.onray.supervisor import Watch
from tailor.runs import environment, evaluations, resume
from tailor.runs.lock import lock
from tailor.runs.log import Record, read
from tailor.runs.origin import Origin, begin, changed
from tailor.runs.report import page
from tailor.runs.status import Status
from tailor.runs.words import now
from tailor.spec.load import resolved_yaml
from tailor.store import Store, run_folder

if TYPE_CHECKING:
    from tailor.data.token_store import TokenStore
    from tailor.encode.prepare import Progress
    from tailor.plan import Plan
    from tailor.spec.recipe import Recipe

STOPPING = "stopping after this step, with a checkpoint; a second signal stops at once"


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    run: Store
    status: Status
    records: list[Record]
    before: bool = False
    """It was finished already, so nothing was done."""
    evaluated: Evaluated | None = None
    """The evaluation that the recipe asks for (`evaluate.final`), where it was made now."""


def execute(recipe: Recipe, display: Display, *, verbose: bool = False) -> Outcome:
    """Run a recipe from its data to its artifact and report, or go on with its unfinished run.

    Raises a TailorError for what the user can hint, and KeyboardInterrupt when a signal ended the run;
    status.json says how the run ended in any case.
    """
    machine.wait_without_spinning()
    if recipe.evaluate.final is not None:
        require(recipe.evaluate.final)
    outcome = _train(recipe, display, verbose=verbose)
    final = recipe.evaluate.final
    if final is None or (
        outcome.before and (final.name or evaluations.FINAL) in evaluations.names(outcome.run)
    ):
        return outcome
    evaluated = evaluate(
        outcome.run.url, final, display, name=evaluations.FINAL, address=recipe.scale.address, verbose=verbose
    )
    return replace(outcome, evaluated=evaluated)


def _train(recipe: Recipe, display: Display, *, verbose: bool) -> Outcome:
    run = Store(recipe.save.to)
    require_lasting(recipe)
    resume.check_place(recipe, run)
    if recipe.model.warm_start is not None and not resume.begun(run):
        from tailor.train import warm_start

        warm_start.find(recipe.model.warm_start)
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts(lambda: display.line(STOPPING)))
        attempt = stack.enter_context(lock(run, display.line))
        origin = resume.check(recipe, run)
        earlier = Status.read(run)
        if earlier is not None and earlier.state == "finished" and origin is None:
            if not run.exists(REPORT):
                trainer.clear(run)
                page.write(run)
            return Outcome(run, earlier, read(run), before=True)
        status = Status(state="running", started=now())
        watch = Stopwatch(status.timings)

        def waiting(text: str) -> None:
            display.line(text)
            display.doing("waiting for machines")

        starting = None
        if not clusters.in_process(recipe.scale):
            starting = stack.enter_context(clusters.Starting(recipe.scale, verbose=verbose))
            watch.mark("import_ray")
        tokens = _prepare(recipe, run, starting, display, interrupts, verbose)
        if recipe.evaluate.final is not None:
            preflight.check(recipe.evaluate.final, recipe, tokens)
        watch.mark("prepare")
        cluster = None
        if starting is not None:
            display.doing(
                "starting Ray" if clusters.address(recipe.scale) is None else "joining the Ray cluster"
            )
            cluster = starting.wait()
            interrupts.take_back()
            display.line(_ray_line(cluster, starting.seconds))
            watch.mark("ray")
        if origin is not None:
            origin = resume.with_data(origin, run, tokens)
            if origin is None and earlier is not None and earlier.state == "finished":
                return Outcome(run, earlier, read(run), before=True)
        if cluster is not None:
            cluster = await_machines(recipe.scale, cluster, waiting)
            watch.mark("machines")
            display.doing("looking at a machine")
        hardware = clusters.hardware(recipe.scale, cluster, waiting)
        plan = make_plan(recipe, tokens, run, hardware, origin)
        resume.check_plan(plan, run, origin)
        for line in [*_tell_changes(run, origin), *plan.notes()]:
            display.line(line)
        if origin is not None:
            begin(run, Store(origin.run), origin)
            status.write(run)  # a run that was finished is so no more
            run.remove(REPORT)  # of the run before the change; its absence says that one is due
        _write_inputs(run, recipe, plan, tokens)
        watch.mark("plan")
        with recorded(run, status, plan, attempt) as update:
            publish = publisher(plan, run, status, watch, display, interrupts, update)
            training = Watch(publish, interrupts, attempt, verbose)
            if not trainer.fit(plan, recipe, training, cluster=cluster):
                raise interrupts.error()
        page.write(run)
    return Outcome(run, status, read(run))


def _tell_changes(run: Store, origin: Origin | None) -> list[str]:
    """What is other than when the run began: its recipe, on purpose, and its environment."""
    lines: list[str] = []
    if origin is not None:
        lines.append(f"going on from {origin.run} at step {origin.step} with another recipe:")
        lines += [f"  {change}" for change in changed(origin)]
        if origin.first_step == origin.step:
            lines.append("  the training data are begun from their start")
    before = run_folder.read_json(run, ENVIRONMENT) if run_folder.checkpoints(run) else {}
    return lines + environment.told_differences(before)


def _prepare(
    recipe: Recipe,
    run: Store,
    starting: clusters.Starting | None,
    display: Display,
    interrupts: Interrupts,
    verbose: bool,
) -> TokenStore:
    from tailor.artifacts.passage_scorer import scorer_of
    from tailor.encode.prepare import prepare
    from tailor.encode.report import notes
    from tailor.encode.unused import unused_lines
    from tailor.onray.prepare import runner_by_size

    def preparing(progress: Progress) -> None:
        interrupts.take_back()  # Ray may have started meanwhile
        display.preparing(progress)

    display.doing("preparing data")
    began = time.monotonic()
    with ExitStack() as stack:

        def connect() -> None:
            (starting or stack.enter_context(clusters.Starting(recipe.scale, verbose=verbose))).wait()
            interrupts.take_back()

        prepared = prepare(
            recipe.data,
            recipe.model,
            recipe.method,
            tokens_root(recipe, run),
            scorer=scorer_of(recipe.data),
            runner=runner_by_size(connect, on_cluster=starting is not None),
            progress=preparing,
        )
    how = "prepared before" if prepared.reused else f"prepared in {time.monotonic() - began:.1f} s"
    report = prepared.tokens.manifest["report"]
    for line in [*data_lines(report, how), *unused_lines(report), *notes(report, recipe.data.holdout)]:
        display.line(line)
    return prepared.tokens


def data_lines(report: dict[str, Any], how: str) -> list[str]:
    """The data in a line, and a line for each source that lost rows."""
    train, evaluation = report["train"], report["evaluation"]
    held = f", {evaluation['examples']:,} for evaluation" if evaluation["examples"] else ""
    lines = [
        (
            f"data {how}: {train['examples']:,} examples of {train['tokens']:,} tokens, "
            f"{train['supervised_tokens']:,} of them supervised{held}"
        )
    ]
    for source in report["sources"]:
        lost = [
            f"{loss['count']:,} {reason.replace('_', ' ')} (first {loss['first'][0][0]})"
            for reason, loss in {**source["unreadable"], **source["dropped"]}.items()
        ]
        lost += [f"{source['truncated']:,} truncated"] if source["truncated"] else []
        if lost:
            lines.append(f"  {source['path']}: of {source['rows']:,} rows {', '.join(lost)}")
    return lines


def _ray_line(cluster: clusters.Cluster, seconds: float) -> str:
    verb = "Ray started" if cluster.own else "joined the Ray cluster"
    gpus = f", {cluster.gpus:g} GPUs" if cluster.gpus else ""
    return f"{verb} in {seconds:.1f} s: {cluster.cpus:g} CPUs{gpus}"


def _write_inputs(run: Store, recipe: Recipe, plan: Plan, tokens: TokenStore) -> None:
    run.write_json(PLAN, plan.as_dict())  # the recipe after it: together they make the folder a run's
    run.write_text(RECIPE, resolved_yaml(recipe))
    data: dict[str, Any] = {
        "fingerprint": tokens.fingerprint,
        "tokens": tokens.url,
        "template": tokens.template and tokens.template["name"],
    }
    run.write_json(DATA_REPORT, {**data, **tokens.manifest["report"]})
    run.write_json(ENVIRONMENT, environment.describe())
