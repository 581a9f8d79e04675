"""`tailor validate`: check recipes without running them."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from tailor.cli.data_report import Report, reported
from tailor.cli.main import report
from tailor.cli.output import Document, Failure, FoundProblem, Output, failure_of, found_problems
from tailor.cli.terminal import make_console
from tailor.errors import RecipeError, TailorError
from tailor.layout import MODEL_CONFIG
from tailor.quiet import quiet
from tailor.spec.load import check_recipe
from tailor.spec.model import Model
from tailor.spec.recipe import Recipe
from tailor.spec.rules.files import hub_cache, is_hub_id

_OVERRIDE = re.compile(r"[\w.]+=")


class Checked(Document):
    """A recipe file."""

    file: str
    ok: bool
    problems: list[FoundProblem]
    data: Report | None
    """Its data, with `--data`."""
    error: Failure | None
    """Why its model or its data cannot be used."""
    run_first: list[str]
    """Recipe files that make the runs it starts from, which do not exist yet."""
    notes: list[str] = []
    """What a valid recipe may lack."""


class Validated(Document):
    """The recipe files, in the order of the arguments. The exit code is 2 if one has problems."""

    recipes: list[Checked]


OUTPUT = Output(Validated)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar="FILE | key=value",
        help="recipe files to check, and keys to change in all of them, such as optim.learning_rate=1e-4",
    )
    parser.add_argument(
        "--data", action="store_true", help="also prepare the data, and report what is lost or not used"
    )


def execute(args: argparse.Namespace) -> int:
    overrides = [argument for argument in args.arguments if _is_override(argument)]
    recipes = [argument for argument in args.arguments if not _is_override(argument)]
    if not recipes:
        print("tailor: no recipe file was given, only overrides", file=sys.stderr)
        return 2
    code = 0
    checked: list[Checked] = []
    for path in recipes:
        try:
            recipe, before = check_recipe(path, overrides)
        except RecipeError as error:
            code = error.exit_code
            print(error.message, file=sys.stderr)
            problems = found_problems(error)
            checked.append(
                Checked(file=path, ok=False, problems=problems, data=None, error=None, run_first=[])
            )
            continue
        data = None
        try:
            notes = check_model(recipe)
            if args.data:
                from tailor.cli.data import show

                quiet()
                data = reported(recipe)
                show(data, make_console(soft_wrap=True))
                data.require()
        except TailorError as error:
            code = report(error)
            failure = failure_of(error)
            checked.append(
                Checked(file=path, ok=False, problems=[], data=data, error=failure, run_first=before)
            )
            continue
        print(f"{path}: ok" + (f"; run {', '.join(before)} first" if before else ""))
        for note in notes:
            print(f"{path}: note: {note}")
        checked.append(
            Checked(file=path, ok=True, problems=[], data=data, error=None, run_first=before, notes=notes)
        )
    if args.json:
        args.json.write(Validated(recipes=checked))
    return code


def check_model(recipe: Recipe) -> list[str]:
    """What the recipe may lack. ModelError for what the model's config.json shows, if the model is on this machine.

    Nothing is downloaded.
    """
    file, positions = _config_file(recipe.model), None
    if file is not None:
        from tailor.plan.checks import check_config
        from tailor.plan.facts import ModelFacts
        from tailor.store import OBJECT

        config = OBJECT.read_path(file)
        check_config(recipe, config)
        positions = ModelFacts.from_config(config).positions
    if recipe.model.rope is None and recipe.model.beacon is None:
        return []
    from tailor.plan import short_context

    found = short_context.note(recipe.model, recipe.method, recipe.evaluate, positions)
    return [found] if found else []


def _config_file(model: Model) -> Path | None:
    """The config.json of a folder, or of a hub model in the cache of the hub's files."""
    if os.path.isdir(model.path):
        return Path(model.path) / MODEL_CONFIG
    cache = hub_cache()
    if not is_hub_id(model.path) or not (cache / f"models--{model.path.replace('/', '--')}").is_dir():
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model.path, MODEL_CONFIG, cache_dir=cache, revision=model.revision)
    return Path(found) if isinstance(found, str) else None


def _is_override(argument: str) -> bool:
    return bool(_OVERRIDE.match(argument)) and not os.path.exists(argument)
