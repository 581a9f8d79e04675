"""A whole run: tokens, plan, training, report. The folder at `save.to` holds everything that it leaves."""

from __future__ import annotations

import posixpath
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tailor import machine
from tailor.errors import TailorError
from tailor.onray import cluster as clusters
from tailor.onray.trainer import fit
from tailor.runs import environment, folder, report, resume
from tailor.runs.log import Record, read
from tailor.runs.status import Status, now, step_of
from tailor.spec.load import resolved_yaml
from tailor.store import Store

if TYPE_CHECKING:
    from tailor.encode.prepare import Progress
    from tailor.plan import Plan
    from tailor.spec.recipe import Recipe
    from tailor.tokens import TokenStore

STATUS_SECONDS = 2.0
REMOTE_STATUS_SECONDS = 15.0


class Display(Protocol):
    """What a run is shown on."""

    def doing(self, what: str) -> None: ...

    def line(self, text: str) -> None: ...

    def preparing(self, progress: Progress) -> None: ...

    def training(self, steps: int, step: int) -> None: ...

    def record(self, record: Record) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    run: Store
    status: Status
    records: list[Record]
    before: bool = False
    """It was finished already, so nothing was done."""


class Stopwatch:
    """Seconds of each part, one after the other."""

    def __init__(self, parts: dict[str, float]) -> None:
        self.parts = parts
        self._last = time.time()

    def mark(self, part: str, at: float | None = None) -> None:
        """The time since the last mark went to `part`. `at`: seconds since the epoch."""
        at = at or time.time()
        self.parts[part] = round(self.parts.get(part, 0.0) + at - self._last, 3)
        self._last = at


def execute(recipe: Recipe, display: Display, *, verbose: bool = False) -> Outcome:
    """Run a recipe from its data to its artefact and report, or go on with its unfinished run.

    Raises a TailorError for what the user can mend; status.json says how the run ended in any case.
    """
    machine.wait_without_spinning()
    run = Store(recipe.save.to)
    resume.check_place(recipe, run)
    with ExitStack() as stack:
        stack.enter_context(folder.lock(run))
        resume.check(recipe, run)
        earlier = Status.read(run)
        if earlier is not None and earlier.state == "finished":
            return Outcome(run, earlier, read(run), before=True)
        status = Status(state="running", started=now())
        watch = Stopwatch(status.timings)

        starting = None
        if not clusters.in_process(recipe.scale):
            starting = stack.enter_context(clusters.Starting(recipe.scale, verbose=verbose))
            watch.mark("import_ray")
        tokens = _prepare(recipe, run, starting, display, verbose)
        watch.mark("prepare")
        cluster = None
        if starting is not None:
            display.doing(
                "starting Ray" if clusters.address(recipe.scale) is None else "joining the Ray cluster"
            )
            cluster = starting.wait()
            _take_sigterm_back()
            display.line(_ray_line(cluster, starting.seconds))
            watch.mark("ray")
        plan = make_plan(recipe, tokens, run, cluster)
        resume.check_plan(plan, run)
        _write_inputs(run, recipe, plan, tokens)
        watch.mark("plan")
        with _recorded(run, status, plan):
            _train(recipe, plan, run, status, watch, display, cluster, verbose)
    report.write(run)
    return Outcome(run, status, read(run))


def _take_sigterm_back() -> None:
    """Ray's core takes SIGTERM over to print a stack; install this process's own handler again."""
    handler = signal.getsignal(signal.SIGTERM)
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def tokens_root(recipe: Recipe, run: Store) -> str:
    """Where prepared tokens are kept: `data.store`, else `tokens` beside the run's folder."""
    return recipe.data.store or posixpath.join(posixpath.dirname(run.url.rstrip("/")), "tokens")


def make_plan(recipe: Recipe, tokens: TokenStore, run: Store, cluster: clusters.Cluster | None) -> Plan:
    """Everything that workers are told."""
    from tailor import plan as planning
    from tailor.batches import data_facts
    from tailor.encode.tokenizer import load_config

    return planning.build(
        recipe,
        data_facts(tokens, recipe),
        load_config(recipe.model.path, recipe.model.revision),
        clusters.hardware(recipe.scale, cluster),
        run_url=run.url,
    )


def _prepare(
    recipe: Recipe, run: Store, starting: clusters.Starting | None, display: Display, verbose: bool
) -> TokenStore:
    from tailor.encode.prepare import prepare
    from tailor.encode.report import notes
    from tailor.onray.prepare import runner_by_size

    display.doing("preparing data")
    began = time.monotonic()
    with ExitStack() as stack:

        def connect() -> None:
            (starting or stack.enter_context(clusters.Starting(recipe.scale, verbose=verbose))).wait()
            _take_sigterm_back()

        prepared = prepare(
            recipe.data,
            recipe.model,
            recipe.method,
            tokens_root(recipe, run),
            runner=runner_by_size(connect, on_cluster=starting is not None),
            progress=display.preparing,
        )
    how = "prepared before" if prepared.reused else f"prepared in {time.monotonic() - began:.1f} s"
    report = prepared.tokens.manifest["report"]
    for line in [*data_lines(report, how), *notes(report, recipe.data.holdout)]:
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
    run.write_json(folder.PLAN, plan.as_dict())  # the recipe after it: together they make the folder a run's
    run.write_text(folder.RECIPE, resolved_yaml(recipe))
    data: dict[str, Any] = {
        "fingerprint": tokens.fingerprint,
        "tokens": tokens.url,
        "template": tokens.template and tokens.template["name"],
    }
    run.write_json(folder.DATA, {**data, **tokens.manifest["report"]})
    run.write_json(folder.ENVIRONMENT, environment.describe())


def _train(
    recipe: Recipe,
    plan: Plan,
    run: Store,
    status: Status,
    watch: Stopwatch,
    display: Display,
    cluster: clusters.Cluster | None,
    verbose: bool,
) -> None:
    existing = folder.checkpoints(run)
    status.resumed_from = folder.step_of(existing[-1]) if existing else None
    status.step, status.steps = status.resumed_from or 0, plan.steps
    status.write(run)
    display.training(status.steps, status.step)
    display.doing("loading the model" if cluster is None else f"starting {plan.workers} workers")
    wait = STATUS_SECONDS if run.is_local else REMOTE_STATUS_SECONDS
    written = time.monotonic()
    expected = ["workers", "model", "first_step"]

    def publish(record: Record) -> None:
        nonlocal written
        _mark(record, expected, watch)
        if record["kind"] == "started":
            display.doing("loading the model")
            return
        display.record(record)
        if record["kind"] == "train":
            status.step = record["step"]
            if time.monotonic() - written >= wait:
                status.write(run)
                written = time.monotonic()

    fit(plan, recipe, publish, cluster=cluster, verbose=verbose)


def _mark(record: Record, expected: list[str], watch: Stopwatch) -> None:
    """Close the start-up part that a record ends."""
    ends = {"started": "workers", "status": "model", "train": "first_step"}.get(record["kind"])
    if record["kind"] == "generation" and "first_step" in expected:
        watch.mark("answers_before", record["time"])
    elif ends is not None and expected and ends == expected[0]:
        watch.mark(expected.pop(0), record["time"])


@contextmanager
def _recorded(run: Store, status: Status, plan: Plan) -> Iterator[None]:
    """Write how training ended, whatever happens."""
    try:
        yield
        status.state, status.step = "finished", plan.steps
    except KeyboardInterrupt as stop:
        status.state, status.error = "interrupted", str(stop) or "interrupted by the user"
        status.step = step_of(status, read(run))  # a step may be in the log and not yet here
        raise
    except Exception as error:
        status.state = "failed"
        status.error = str(error) if isinstance(error, TailorError) else f"{type(error).__name__}: {error}"
        raise
    finally:
        status.ended = now()
        status.write(run)
