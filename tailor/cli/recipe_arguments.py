"""The recipe of a command and the keys of it that the command line changes."""

from __future__ import annotations

import argparse


def add_recipe(parser: argparse.ArgumentParser, example: str) -> None:
    """Add the arguments `recipe` and `overrides`. example: an override that users of the command often write."""
    parser.add_argument("recipe", help="recipe file")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help=f"recipe keys to change, such as {example}",
    )
