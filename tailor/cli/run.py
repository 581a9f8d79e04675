"""`tailor run`: a recipe from its data to its trained, proven artifact."""

from __future__ import annotations

import argparse
import posixpath
import sys
from typing import TYPE_CHECKING, Any

from tailor.cli.main import INTERRUPTED
from tailor.errors import StoreError
from tailor.layout import ENVIRONMENT, PLAN, RECIPE, REPORT
from tailor.quiet import quiet
from tailor.spec.load import load_recipe

if TYPE_CHECKING:
    from rich.console import Console

    from tailor.cli.display import Progress
    from tailor.onray.run import Outcome
    from tailor.spec.recipe import Recipe

RESULTS = (
    "Training loss",
    "Evaluation loss",
    "Token accuracy",
    "Artifact from",
    "Exact match",
    "Recall@1",
    "NDCG@10",
    "Time",
    "Speed",
    "Peak memory",
)
TERMINATED = 143  # 128 + SIGTERM


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="the recipe's file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="such as optim.learning_rate=1e-4"
    )
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="let Ray, transformers and the others print their own lines too",
    )


def execute(args: argparse.Namespace) -> int:
    recipe = load_recipe(args.recipe, args.overrides)
    if not args.verbose:
        quiet()
    from tailor.cli.display import Display
    from tailor.onray import run
    from tailor.onray.interrupts import Terminated
    from tailor.runs import environment

    if recipe.save.to.startswith("memory:"):
        raise StoreError(
            f"{recipe.save.to} lies in this process's memory and is lost when the command ends",
            hint="set save.to to a folder on a disk or in an object store",
        )
    if recipe.export.push_to_hub is not None:
        from tailor.export import recipe as handover
        from tailor.machine import wait_without_spinning

        wait_without_spinning()  # torch comes with what follows
        handover.require(recipe)
    display = Display()
    try:
        with display:
            for line in environment.told_differences(_environment_beside(args.recipe)):
                display.line(line)
            outcome = run.execute(recipe, display, verbose=args.verbose)
    except KeyboardInterrupt as stop:
        print(f"tailor: {stopped(recipe, display.progress)}", file=sys.stderr)
        return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
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
    """The environment of the run whose resolved recipe is run again; empty for any other recipe."""
    from tailor.store import Store, run_folder

    beside = Store(posixpath.dirname(recipe) or ".")
    of_a_run = posixpath.basename(recipe) == RECIPE and beside.exists(PLAN)
    return run_folder.read_json(beside, ENVIRONMENT) if of_a_run else {}


def stopped(recipe: Recipe, progress: Progress) -> str:
    """Where an interrupted run stopped, and what the same command does next."""
    from tailor.runs.log import of_kind, read
    from tailor.store import Store, run_folder

    run = Store(recipe.save.to)
    saved = run_folder.checkpoints(run)
    train = of_kind(read(run), "train")  # workers of their own are ahead of what was shown
    step = train[-1]["step"] if train else progress.step
    where = f"at step {step} of {progress.steps}" if progress.steps else "before training began"
    if not saved:
        return f"interrupted {where}; there is no checkpoint yet, so the same command starts over"
    how = "the same command" if recipe.save.resume != "never" else "with save.resume=auto, the same command"
    return (
        f"interrupted {where}; {how} goes on from step {run_folder.step_of(saved[-1])}, the last checkpoint"
    )


def closing(outcome: Outcome, console: Console, *, samples: int) -> None:
    """What a finished run leaves to look at, and what to do next."""
    from rich.text import Text

    from tailor.cli.show import curve, next_commands, sample_answers, shown_path
    from tailor.runs.report.page import summary

    run, here = outcome.run, shown_path(outcome.run.url)
    console.print()
    if outcome.already_finished:
        console.print(
            Text(f"The run at {here} is finished: step {outcome.status.step} of {outcome.status.steps}.")
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
