"""`tailor submit`: run a recipe as a job on a Ray cluster, and follow it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tailor.cli.jobs import add_address, followed
from tailor.errors import Problem, RecipeError
from tailor.spec import load, visibility
from tailor.spec.recipe import Recipe
from tailor.spec.rules.keys import path_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tailor.spec.rules.keys import Finding


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="the recipe's file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as save.to=s3://bucket/runs/x"
    )
    add_address(parser)
    parser.add_argument(
        "--shared",
        action="append",
        default=[],
        metavar="FOLDER",
        help="a folder that every machine of the cluster sees under the same path; files and runs may lie below it",
    )
    parser.add_argument(
        "--detach", action="store_true", help="leave when the job is sent; `tailor jobs logs` follows it"
    )


def execute(args: argparse.Namespace) -> int:
    view = seen(args.shared)
    recipe = load_recipe(args.recipe, args.overrides, view)
    from tailor.kube.names import name_from
    from tailor.onray.jobs import Jobs

    jobs = Jobs(args.address)
    name = jobs.submit(recipe, view, name_from(Path(args.recipe).stem))
    print(f"job {name} on {jobs.address}, run {recipe.save.to}", file=sys.stderr)
    if args.detach:
        print(f"tailor jobs logs {name} --address {jobs.address}")
        return 0
    return followed(jobs, name)


def seen(shared: Sequence[str]) -> visibility.Visibility:
    """What the machines of a cluster see: URLs, and the folders that they are said to share."""
    folders = tuple(os.path.abspath(folder) for folder in shared)
    named = "a folder below one that all machines of the cluster see, which --shared names"
    return visibility.Visibility(
        machines="the cluster's machines",
        context="there",
        working_dir=os.getcwd(),
        shared=folders,
        write_hint=named,
        not_shared=f"is a folder of each machine for itself; write s3://…, or {named}",
        read_hint="put it on s3://… or hf://…, or into a folder that all of them see, which --shared names",
    )


def load_recipe(path: str, overrides: Sequence[str], view: visibility.Visibility) -> Recipe:
    """A recipe, judged as one that runs on a cluster. Its local names are absolute, for the job runs elsewhere."""
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
    if all(
        os.path.isdir(folder) for folder in view.shared
    ):  # else its files are not this machine's to look for
        load.judge(document, Recipe)
    return visibility.absolute(recipe, view)


def _address(recipe: Recipe) -> Iterator[Finding]:
    if recipe.scale.address is not None:
        yield (
            "scale.address",
            "has no place in a job, which joins the cluster that it is sent to; use --address",
        )
