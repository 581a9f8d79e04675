"""`tailor run`: train a recipe, from its data to the verified artifact."""

from __future__ import annotations

import argparse
import posixpath
import sys
from typing import TYPE_CHECKING, Any

from tailor.cli.events import Event, EventDisplay
from tailor.cli.main import INTERRUPTED, TERMINATED
from tailor.cli.output import Output
from tailor.cli.recipe_arguments import add_recipe
from tailor.cli.resumable import load_to_run
from tailor.cli.worker_options import add_verbose_option
from tailor.errors import StoreError
from tailor.imports import uncollected
from tailor.layout import PLAN, RECIPE, REPORT
from tailor.quiet import quiet

if TYPE_CHECKING:
    from rich.console import Console

    from tailor.cli.display import Progress
    from tailor.onray.run import Outcome
    from tailor.spec.recipe import Recipe

RESULTS = (
    "Training loss",
    "Evaluation loss",
    "Token accuracy",
    "Artifact",
    "Exact match",
    "Recall@1",
    "NDCG@10",
    "Time",
    "Speed",
    "Peak memory",
)
OUTPUT = Output(Event, events=True)


def configure(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, "optim.learning_rate=1e-4")
    add_verbose_option(parser)


def execute(args: argparse.Namespace) -> int:
    with uncollected():  # of pydantic's models
        recipe = load_to_run(args.recipe, args.overrides)
    if not args.verbose:
        quiet()
    with uncollected():
        from tailor.cli.display import Display
        from tailor.onray import run
        from tailor.onray.interrupts import Terminated
        from tailor.runs import environment

    if recipe.save.to.startswith("memory:"):
        raise StoreError(
            f"{recipe.save.to} is in the memory of this process and is lost when the command ends",
            hint="set save.to to a folder on a disk or in an object store",
        )
    if recipe.export.push_to_hub is not None:
        from tailor.export import recipe as handover
        from tailor.machine import wait_without_spinning

        wait_without_spinning()  # before the next line imports torch
        handover.require(recipe)
    display = EventDisplay(args.json) if args.json else Display()
    if isinstance(display, EventDisplay):
        display.started(args.recipe, recipe.save.to)
    try:
        with display:
            for line in environment.differences(_environment_beside(args.recipe)):
                display.line(line)
            outcome = run.execute(recipe, display, verbose=args.verbose)
    except KeyboardInterrupt as stop:
        print(f"tailor: {stopped(recipe, display.progress)}", file=sys.stderr)
        return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
    if isinstance(display, EventDisplay):
        display.ended(outcome)
    closing(
        outcome,
        display.console,
        samples=recipe.evaluate.generation.samples if recipe.evaluate.generation else 0,
    )
    if outcome.evaluated is not None:
        from tailor.cli.evaluate import show

        show(outcome.evaluated.folder, outcome.evaluated.results, display.console, samples=0)
        outcome.evaluated.require()
    if recipe.export.push_to_hub is not None:
        handover.push(recipe, display.line)
    return 0


def _environment_beside(recipe: str) -> dict[str, Any]:
    """The recorded environment, if the recipe is the resolved one in a run folder; else empty."""
    from tailor.store import Store, run_files

    beside = Store(posixpath.dirname(recipe) or ".")
    of_a_run = posixpath.basename(recipe) == RECIPE and beside.exists(PLAN)
    return run_files.environment(beside) if of_a_run else {}


def stopped(recipe: Recipe, progress: Progress) -> str:
    """The message of an interrupted run: where it stopped, and how to continue."""
    from tailor.runs.log import of_kind, read
    from tailor.store import Store, run_folder

    run = Store(recipe.save.to)
    saved = run_folder.checkpoints(run)
    train = of_kind(read(run), "train")  # Ray workers may be ahead of the display
    step = train[-1]["step"] if train else progress.step
    position = f"at step {step} of {progress.steps}" if progress.steps else "before training began"
    if not saved:
        return f"interrupted {position}; there is no checkpoint yet, so the same command starts again from step 0"
    how = "the same command" if recipe.save.resume != "never" else "with save.resume=auto, the same command"
    return f"interrupted {position}; {how} continues from the last checkpoint, step {run_folder.step_of(saved[-1])}"


def closing(outcome: Outcome, console: Console, *, samples: int) -> None:
    """Print the results of a finished run, its files, and the next commands."""
    from rich.text import Text

    from tailor.cli.show import curve, next_commands, sample_answers, shown_path
    from tailor.runs.report.page import summary

    run, here = outcome.run, shown_path(outcome.run.url)
    console.print()
    if outcome.already_finished:
        console.print(
            Text(
                f"The run at {here} was finished before: step {outcome.status.step} of {outcome.status.steps}."
            )
        )
    else:
        console.print(curve(outcome.records, console))
    figures = dict(summary(run, outcome.records))
    for what in RESULTS:
        if what in figures:
            console.print(Text.assemble((f"{what:<16}", "bold"), figures[what]))
    if samples and not outcome.already_finished:
        console.print(sample_answers(run, samples))
    console.print()
    console.print(Text.assemble(("run folder      ", "bold"), here))
    console.print(Text.assemble(("report, plots   ", "bold"), posixpath.join(here, REPORT), ", loss.png …"))
    for command in next_commands(run):
        console.print(Text.assemble(("next            ", "bold"), (command, "cyan")))
