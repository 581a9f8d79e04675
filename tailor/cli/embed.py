"""`tailor embed`: write the embeddings of a file's texts to a Parquet file."""

from __future__ import annotations

import argparse
import sys

from tailor.cli.main import INTERRUPTED
from tailor.cli.numbers import whole
from tailor.cli.output import Document, Output
from tailor.cli.trust import granted
from tailor.cli.worker_options import add_worker_options
from tailor.errors import DataError
from tailor.quiet import quiet


class Embedded(Document):
    """A Parquet file of embeddings."""

    url: str
    rows: int
    truncated: int
    """Texts that were longer than the model's maximum length."""


OUTPUT = Output(Embedded)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", help="run folder of a model that makes embeddings, or folder of its adapter or model"
    )
    parser.add_argument(
        "input", help="JSONL, JSON, Parquet, CSV or text file, or a folder of them; any fsspec URL"
    )
    parser.add_argument("output", help="Parquet file to write; any fsspec URL")
    parser.add_argument(
        "--column",
        action="append",
        metavar="NAME",
        help="column with the text (default: text); with several --column options the texts are joined by a space",
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="NAME",
        help="column to copy to the output, such as an id; may be repeated",
    )
    parser.add_argument("--instruction", metavar="TEXT", help="instruction to put before every text")
    parser.add_argument(
        "--dimension",
        type=whole(1),
        metavar="N",
        help="keep only the first N dimensions, for models trained with method.matryoshka",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "int8", "ubinary"),
        default="float32",
        help="data type of the numbers in the file (default: float32); int8 divides the range of each dimension into 255 "
        "steps, ubinary keeps one bit per dimension; they are computed and normalized in float32",
    )
    parser.add_argument(
        "--ranges",
        metavar="FILE",
        help="with --dtype int8: use the ranges of this file of embeddings (default: the ranges of the input)",
    )
    parser.add_argument(
        "--key-values",
        action="store_true",
        help="also write the key-values of every text, beside the output, so that `tailor generate --retrieve --reuse` can use them",
    )
    add_worker_options(parser)


def execute(args: argparse.Namespace) -> int:
    if not args.verbose:
        quiet()
    from tailor.cli.display import Display
    from tailor.cli.show import shown_path, truncated_line
    from tailor.evaluate.embed_file import Request
    from tailor.onray.embed import embed

    request = Request(
        args.input,
        tuple(args.column or ("text",)),
        tuple(args.keep),
        args.instruction,
        args.dimension,
        args.dtype,
        args.ranges,
        args.key_values,
    )
    if args.ranges is not None and args.dtype != "int8":
        raise DataError(
            f"--ranges has no effect with --dtype {args.dtype}", hint="remove it, or set --dtype int8"
        )
    trust = granted(args, [args.run])
    display = Display()
    try:
        with display:
            outcome = embed(
                args.run,
                request,
                args.output,
                display,
                workers=args.workers,
                trust=trust,
                verbose=args.verbose,
            )
    except KeyboardInterrupt:
        print(
            "tailor: interrupted; run the same command again to continue after the finished rows",
            file=sys.stderr,
        )
        return INTERRUPTED
    if args.json:
        args.json.write(Embedded(url=outcome.url, rows=outcome.rows, truncated=outcome.truncated))
        return 0
    if outcome.truncated:
        print(truncated_line(outcome.truncated))
    print(f"{outcome.rows:,} embeddings written to {shown_path(outcome.url)}")
    return 0
