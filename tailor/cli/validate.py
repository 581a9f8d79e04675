"""`tailor validate`: check recipes without running them."""

from __future__ import annotations

import argparse
import os
import re
import sys

from tailor.cli.terminal import make_console
from tailor.errors import RecipeError
from tailor.quiet import quiet
from tailor.spec.load import load_recipe
from tailor.spec.recipe import Recipe

_OVERRIDE = re.compile(r"[\w.]+=")


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
    for path in recipes:
        try:
            recipe = load_recipe(path, overrides)
        except RecipeError as error:
            code = error.exit_code
            print(error.message, file=sys.stderr)
        else:
            if args.data:
                _check_data(recipe)
            print(f"{path}: ok")
    return code


def _check_data(recipe: Recipe) -> None:
    """Report the recipe's data. DataError for sources that are missing or lose more rows than the budget allows."""
    quiet()

    from tailor.cli.data import report

    report(recipe, make_console(soft_wrap=True))


def _is_override(argument: str) -> bool:
    return bool(_OVERRIDE.match(argument)) and not os.path.exists(argument)
