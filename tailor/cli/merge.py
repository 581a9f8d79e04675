"""`tailor merge`: merge an adapter into its base, and compare the result with the trained model."""

from __future__ import annotations

import argparse

from tailor.cli.numbers import number
from tailor.cli.output import Output, Written
from tailor.cli.trust import add_trust_option, granted
from tailor.quiet import quiet

OUTPUT = Output(Written)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run folder, or folder of an adapter")
    parser.add_argument("--to", metavar="URL", help="folder to write the model to (default: RUN/merged)")
    add_merge_options(parser)


def add_merge_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `merge`, `export` and `push` have in common."""
    add_trust_option(parser)
    parser.add_argument(
        "--onto",
        choices=("full", "dequantized"),
        help="merge into the original base weights (full) or the dequantized ones of training (dequantized); default: as in training",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="data type of the merged weights (default: auto, that of the base)",
    )
    parser.add_argument(
        "--base", metavar="PATH", help="folder of the base model, if it has moved since training"
    )
    parser.add_argument(
        "--tolerance",
        type=number(over=0),
        metavar="X",
        help="largest allowed difference: mean KL divergence in nats per token (--verify logits, default 0.001), or relative "
        "error of an embedding (--verify embeddings, default 0.03), of the scores of pairs (--verify scores, default 0.03) or of "
        "a layer's output (--verify layers, default 0.02)",
    )
    parser.add_argument(
        "--verify",
        choices=("logits", "embeddings", "scores", "layers"),
        help="compare the logits of the whole model (default), its embeddings (default after method.mode: embedding), its "
        "scores (default after method rerank), or sampled layers if it does not fit into memory",
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
        trust=granted(args, [args.run]),
        say=lambda line: print(line, flush=True),
    )
    if args.json:
        args.json.write(Written(url=merged.url))
    else:
        print(f"model written to {merged.url}")
    return 0
