"""`tailor submit`: run a recipe as a job on a Ray cluster, and follow its log."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tailor.cli.jobs import add_address, followed
from tailor.cli.output import Document, Output
from tailor.cli.recipe_arguments import add_recipe
from tailor.errors import Problem, RecipeError
from tailor.redaction import redacted
from tailor.spec import load, visibility
from tailor.spec.recipe import Recipe
from tailor.spec.rules.keys import path_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tailor.spec.rules.keys import Finding


class Submitted(Document):
    """A job that was submitted."""

    job: str
    address: str
    run: str
    """The run folder."""
    exit_code: int | None
    """Of the job, when it has ended; null with `--detach`."""


OUTPUT = Output(Submitted)


def configure(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, "save.to=s3://bucket/runs/x")
    add_address(parser)
    parser.add_argument(
        "--shared",
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder that all nodes of the cluster mount at the same path; may contain data, models and runs; may be repeated",
    )
    parser.add_argument(
        "--detach",
        action="store_true",
        help="exit after the submission; follow the log with `tailor jobs logs`",
    )


def execute(args: argparse.Namespace) -> int:
    view = seen(args.shared)
    recipe = load_recipe(args.recipe, args.overrides, view)
    from tailor.kube.names import name_from
    from tailor.onray.jobs import Jobs

    jobs = Jobs(args.address)
    name = jobs.submit(recipe, view, name_from(Path(args.recipe).stem))
    print(f"submitted job {name} to {jobs.address}; run folder {recipe.save.to}", file=sys.stderr)
    code = None if args.detach else followed(jobs, name)
    if args.json:
        address = redacted(jobs.address)
        args.json.write(Submitted(job=name, address=address, run=recipe.save.to, exit_code=code))
    elif args.detach:
        print(f"tailor jobs logs {name} --address {redacted(jobs.address)}")
    return code or 0


def seen(shared: Sequence[str]) -> visibility.Visibility:
    """What the machines of a cluster can read and write: URLs, and the folders given with --shared."""
    folders = tuple(os.path.abspath(folder) for folder in shared)
    shared_folder = "a folder that all machines of the cluster share, given with --shared"
    return visibility.Visibility(
        machines="the cluster's machines",
        context="there",
        working_dir=os.getcwd(),
        shared=folders,
        write_hint=shared_folder,
        not_shared=f"is a different folder on each machine; write s3://…, or {shared_folder}",
        read_hint="put it on s3://… or hf://…, or into a folder that they share, given with --shared",
    )


def load_recipe(path: str, overrides: Sequence[str], view: visibility.Visibility) -> Recipe:
    """Load and check a recipe for a job. Local paths become absolute, because the job runs in another folder."""
    document = load.read(path, Recipe, overrides)
    recipe = load.judge(document, Recipe, load.RULES[:1])
    problems: list[Problem] = [
        document.at_value(path_of(key)).problem(path_of(key), message)
        for findings in (
            _address(recipe),
            visibility.check_writes(recipe, view),
            visibility.check_reads(recipe, view, bundled=True),
        )
        for key, message in findings
    ]
    if problems:
        raise RecipeError(problems)
    # If a shared folder is not mounted on this machine, its files cannot be checked here.
    if all(os.path.isdir(folder) for folder in view.shared):
        load.judge(document, Recipe)
    return visibility.absolute(recipe, view)


def _address(recipe: Recipe) -> Iterator[Finding]:
    if recipe.scale.address is not None:
        yield (
            "scale.address",
            "cannot be set in a job, which runs on the cluster that it is submitted to; use --address instead",
        )
