"""`tailor embed`: the texts of a file as embeddings, in Parquet."""

from __future__ import annotations

import argparse
import sys

from tailor.cli.main import INTERRUPTED
from tailor.cli.numbers import whole
from tailor.quiet import quiet


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run that trained embeddings, or the folder of its adapter or model")
    parser.add_argument(
        "input", help="JSONL, JSON, Parquet, CSV or text, on any fsspec URL, or a folder of them"
    )
    parser.add_argument("output", help="the Parquet file to write, on any fsspec URL")
    parser.add_argument(
        "--column",
        action="append",
        metavar="NAME",
        help="where the text stands (default: text); given several times, the texts are joined by a space",
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="NAME",
        help="a column that the output has too, such as an id",
    )
    parser.add_argument("--instruction", metavar="TEXT", help="before every text")
    parser.add_argument(
        "--dimension",
        type=whole(1),
        metavar="N",
        help="the first N numbers, for models trained with method.matryoshka",
    )
    parser.add_argument(
        "--workers",
        type=whole(1),
        metavar="N",
        help="Ray workers that share the rows (default: one per GPU, else this process)",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="let Ray, transformers and the others print too"
    )


def execute(args: argparse.Namespace) -> int:
    if not args.verbose:
        quiet()
    from tailor.cli.display import Display
    from tailor.cli.show import shown_path
    from tailor.evaluate.embed_file import Request
    from tailor.onray.embed import embed

    request = Request(
        args.input,
        tuple(args.column or ("text",)),
        tuple(args.keep),
        args.instruction,
        args.dimension,
    )
    display = Display()
    try:
        with display:
            outcome = embed(
                args.run, request, args.output, display, workers=args.workers, verbose=args.verbose
            )
    except KeyboardInterrupt:
        print("tailor: interrupted; the same command goes on from the rows that are done", file=sys.stderr)
        return INTERRUPTED
    if outcome.truncated:
        print(f"{outcome.truncated:,} texts were longer than the model reads; their ends were left out")
    print(f"{outcome.rows:,} embeddings in {shown_path(outcome.url)}")
    return 0
