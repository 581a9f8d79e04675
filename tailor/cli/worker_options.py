"""Options of the commands that use a model on Ray workers."""

from __future__ import annotations

import argparse

from tailor.cli.numbers import whole
from tailor.cli.trust import add_trust_option


def add_worker_options(parser: argparse.ArgumentParser, workers: str = "number of Ray workers") -> None:
    """Add `--workers`, `--trust-remote-code` and `--verbose`. workers: what the number counts."""
    parser.add_argument(
        "--workers",
        type=whole(1),
        metavar="N",
        help=f"{workers} (default: one per GPU; without a GPU, this process)",
    )
    add_trust_option(parser)
    add_verbose_option(parser)


def add_verbose_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verbose", action="store_true", help="show the output of Ray, transformers and other libraries"
    )
