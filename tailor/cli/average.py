"""`tailor average`: write the weighted average of models, checkpoints or adapters."""

from __future__ import annotations

import argparse

from tailor.cli.numbers import number, whole
from tailor.cli.output import Output, Written
from tailor.cli.trust import add_trust_option, granted
from tailor.quiet import quiet

OUTPUT = Output(Written)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "parts",
        nargs="+",
        metavar="PART",
        help="run, model, adapter or RUN/checkpoints/step-…; all PARTs must be of the same kind",
    )
    parser.add_argument("--to", metavar="URL", required=True, help="folder to write the average to")
    parser.add_argument(
        "--weights",
        nargs="+",
        type=number(at_least=0),
        metavar="W",
        help="one weight per PART, scaled to a sum of 1 (default: equal weights)",
    )
    parser.add_argument(
        "--rank",
        type=whole(1),
        metavar="R",
        help="reduce an average of adapters to rank R by SVD (default: the exact average, of a higher rank)",
    )
    parser.add_argument(
        "--tolerance",
        type=number(over=0),
        metavar="X",
        help="largest allowed difference of averaged adapters from the weighted sum of the adapters, as in `tailor merge`",
    )
    parser.add_argument(
        "--verify",
        choices=("logits", "scores", "layers"),
        help="compare averaged adapters by logits on their base (rerankers: by scores), or only by the updates of sampled layers "
        "(default: logits or scores if the base is on this machine and fits into memory)",
    )
    add_trust_option(parser)


def execute(args: argparse.Namespace) -> int:
    quiet()
    from tailor.artifacts.average import average

    url = average(
        args.parts,
        args.to,
        weights=args.weights,
        rank=args.rank,
        tolerance=args.tolerance,
        check=args.verify,
        trust=granted(args, args.parts),
        say=print,
    )
    if args.json:
        args.json.write(Written(url=url))
    else:
        print(f"average written to {url}")
    return 0
