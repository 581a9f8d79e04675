"""`--trust-remote-code`: the option of the commands that load a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tailor.models.own_code import Trust


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python code in the folder of this model, or of its base; only for code that you have read",
    )


def granted(args: argparse.Namespace, urls: Sequence[str]) -> Trust:
    """The code that the command line trusts: none without the option, else that of the models at `urls`, as it is now."""
    from tailor.artifacts.trust import trust_of
    from tailor.models.own_code import NOTHING

    return trust_of(urls, getattr(args, "base", None)) if args.trust_remote_code else NOTHING
