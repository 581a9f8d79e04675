"""The recipe of a command, and the keys of a file that the command line changes."""

from __future__ import annotations

import argparse


def add_recipe(parser: argparse.ArgumentParser, example: str) -> None:
    """Add the arguments `recipe` and `overrides`. example: an override that users of the command often write."""
    parser.add_argument("recipe", help="recipe file")
    add_overrides(parser, example)


def add_overrides(parser: argparse.ArgumentParser, example: str, keys: str = "recipe") -> None:
    """Add the argument `overrides`. keys: the kind of file whose keys they change."""
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help=f"{keys} keys to change, such as {example}",
    )
