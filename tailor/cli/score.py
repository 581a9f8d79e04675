"""`tailor score`: add a teacher's scores to the passages of rows, for distillation."""

from __future__ import annotations

import argparse
import sys

from tailor.cli.main import INTERRUPTED
from tailor.cli.output import Document, Output
from tailor.cli.trust import granted
from tailor.cli.worker_options import add_worker_options
from tailor.quiet import quiet


class Scored(Document):
    """A JSONL file of rows with a teacher's scores."""

    url: str
    rows: int
    unreadable: int
    """Rows that were left out."""
    truncated: int
    """Texts, or pairs of a cross-encoder, that were longer than the model's maximum length."""


OUTPUT = Output(Scored)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "teacher",
        help="folder, URL or Hugging Face name of a cross-encoder (needs the package sentence-transformers); or run folder of a "
        "model that makes embeddings, or the folder of its adapter or model",
    )
    parser.add_argument(
        "rows",
        help="rows of queries with their passages, in any format of embedding data; any fsspec URL",
    )
    parser.add_argument("output", help="JSONL file to write: the rows with their scores; any fsspec URL")
    add_worker_options(parser)


def execute(args: argparse.Namespace) -> int:
    if not args.verbose:
        quiet()
    from tailor.cli.display import Display
    from tailor.cli.show import shown_path, truncated_line
    from tailor.onray.score import score

    trust = granted(args, [args.teacher])
    display = Display()
    try:
        with display:
            outcome = score(
                args.teacher,
                args.rows,
                args.output,
                display,
                workers=args.workers,
                trust=trust,
                verbose=args.verbose,
            )
    except KeyboardInterrupt:
        print("tailor: interrupted; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    if args.json:
        args.json.write(
            Scored(
                url=outcome.url,
                rows=outcome.rows,
                unreadable=outcome.unreadable,
                truncated=outcome.truncated,
            )
        )
        return 0
    if outcome.truncated:
        print(truncated_line(outcome.truncated))
    print(f"{outcome.rows:,} rows with scores written to {shown_path(outcome.url)}")
    return 0
