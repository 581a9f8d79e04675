"""`tailor average`: the weighted average of models, of checkpoints or of adapters."""

from __future__ import annotations

import argparse

from tailor.cli.numbers import number, whole
from tailor.quiet import quiet


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "parts",
        nargs="+",
        metavar="PART",
        help="runs, models, adapters, or RUN/checkpoints/step-…; all of one kind",
    )
    parser.add_argument("--to", metavar="URL", required=True, help="where the average goes")
    parser.add_argument(
        "--weights",
        nargs="+",
        type=number(at_least=0),
        metavar="W",
        help="one for each; scaled to a sum of 1 (default: equal)",
    )
    parser.add_argument(
        "--rank",
        type=whole(1),
        metavar="R",
        help="reduce an average of adapters to this rank by SVD (default: exact)",
    )


def execute(args: argparse.Namespace) -> int:
    quiet()
    from tailor.artifacts.average import average

    url = average(args.parts, args.to, weights=args.weights, rank=args.rank, say=print)
    print(f"average in {url}")
    return 0
