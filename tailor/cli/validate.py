"""`tailor validate`: check recipes without running them."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from tailor.errors import RecipeError
from tailor.spec.load import load_recipe

_OVERRIDE = re.compile(r"[\w.]+=")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar="FILE | key=value",
        help="recipe files to check, and keys to change in all of them, such as optim.learning_rate=1e-4",
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
            load_recipe(path, overrides)
        except RecipeError as error:
            code = error.exit_code
            for problem in error.problems:
                print(problem, file=sys.stderr)
        else:
            print(f"{path}: ok")
    return code


def _is_override(argument: str) -> bool:
    return bool(_OVERRIDE.match(argument)) and not Path(argument).exists()
