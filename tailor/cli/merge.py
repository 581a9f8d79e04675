"""`tailor merge`: an adapter into its base, proven against the model that was trained."""

from __future__ import annotations

import argparse

from tailor.cli.numbers import number
from tailor.quiet import quiet


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run's folder, or an adapter's")
    parser.add_argument("--to", metavar="URL", help="where the model goes (default: the run's merged/)")
    add_merge_options(parser)


def add_merge_options(parser: argparse.ArgumentParser) -> None:
    """What `merge` and `export` share."""
    parser.add_argument(
        "--onto",
        choices=("full", "dequantized"),
        help="the base's own weights, or what quantization made of them (default: as in training)",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the merged weights (default: auto, the base's own)",
    )
    parser.add_argument("--base", metavar="PATH", help="where the base is, when it has moved since")
    parser.add_argument(
        "--tolerance",
        type=number(over=0),
        metavar="X",
        help="largest difference: mean KL in nats a token (default 0.001), or share of a layer's output (0.02)",
    )
    parser.add_argument(
        "--verify",
        choices=("logits", "layers"),
        default="logits",
        help="compare the whole model's logits, or sampled layers where it does not fit into memory",
    )


def execute(args: argparse.Namespace) -> int:
    quiet()
    from tailor.artifacts.merge import merge

    merged = merge(
        args.run,
        args.to,
        onto=args.onto,
        dtype=args.dtype,
        base=args.base,
        tolerance=args.tolerance,
        check=args.verify,
        say=lambda line: print(line, flush=True),
    )
    print(f"model in {merged.url}")
    return 0
