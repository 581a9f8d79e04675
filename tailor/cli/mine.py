"""`tailor mine`: add hard negatives to rows of queries with their relevant passages."""

from __future__ import annotations

import argparse
import sys

from tailor.cli.main import INTERRUPTED
from tailor.cli.numbers import number, whole
from tailor.cli.output import Document, Output
from tailor.cli.trust import granted
from tailor.cli.worker_options import add_worker_options
from tailor.errors import DataError
from tailor.evaluate.mining import BM25, RANDOM
from tailor.quiet import quiet

RANGE = 100
MARGIN = 0.05
"""Relative margin of embeddings, if no other is given: the best value of NV-Retriever's TopK-PercPos (95 %)."""


class Mined(Document):
    """A JSONL file of rows with negatives."""

    url: str
    rows: int
    passages: int
    """Distinct passages to choose from."""
    negatives: int
    """Negatives in all rows."""
    without_negatives: int
    """Rows for which no passage could be chosen."""
    unreadable: int
    """Rows that were left out."""
    unreadable_passages: int
    """Rows of the corpus that were left out."""
    truncated: int
    """Texts that were longer than the model's maximum length."""


OUTPUT = Output(Mined)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "retriever",
        help="what ranks the passages: the run folder of a model that makes embeddings, the folder of its adapter or model, "
        "`bm25`, or `random`",
    )
    parser.add_argument(
        "rows",
        help="rows of queries with their relevant passages, in any format of embedding data; any fsspec URL",
    )
    parser.add_argument("output", help="JSONL file to write: the rows with their negatives; any fsspec URL")
    parser.add_argument(
        "--corpus",
        metavar="FILE",
        help="JSONL, JSON, Parquet, CSV or text file of passages, or a folder of them (default: the passages of the rows)",
    )
    parser.add_argument(
        "--column",
        action="append",
        metavar="NAME",
        help="column of the corpus with the text (default: text); with several --column options the texts are joined by a space",
    )
    parser.add_argument(
        "--corpus-instruction",
        metavar="TEXT",
        help="instruction of the passages of the corpus (default: that of the rows' relevant passages)",
    )
    parser.add_argument(
        "--negatives", type=whole(1), default=7, metavar="N", help="negatives per row (default: 7)"
    )
    parser.add_argument(
        "--relative-margin",
        type=number(at_least=0, at_most=1),
        metavar="M",
        help="choose only passages whose score is below that of the relevant passage by this fraction of it; a higher one is "
        f"probably relevant too (default: {MARGIN} with embeddings)",
    )
    parser.add_argument(
        "--absolute-margin",
        type=number(at_least=0),
        metavar="M",
        help="choose only passages whose score is below that of the relevant passage by this much",
    )
    parser.add_argument(
        "--no-margin", action="store_true", help="choose passages whatever the score of the relevant passage"
    )
    parser.add_argument(
        "--range-min",
        type=whole(0),
        metavar="N",
        help="skip the N passages with the highest scores below the margin (default: 0)",
    )
    parser.add_argument(
        "--range-max",
        type=whole(1),
        metavar="N",
        help=f"choose among the N passages with the highest scores below the margin (default: {RANGE})",
    )
    parser.add_argument(
        "--sampling",
        choices=("top", "random"),
        help="choose the highest scores of the range, or random passages of it (default: top)",
    )
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="random seed of sampling (default: 0)"
    )
    add_worker_options(parser, "number of Ray workers that embed")


def execute(args: argparse.Namespace) -> int:
    _check(args)
    if not args.verbose:
        quiet()
    from tailor.cli.display import Display
    from tailor.cli.show import shown_path, truncated_line
    from tailor.evaluate.mining.choice import Choice
    from tailor.onray.mine import Corpus, mine

    margin = args.relative_margin
    if _embeds(args) and margin is None and args.absolute_margin is None and not args.no_margin:
        margin = MARGIN
    choice = Choice(
        args.negatives,
        (args.range_min or 0, args.range_max or RANGE),
        margin,
        args.absolute_margin,
        args.sampling or "top",
        args.seed,
    )
    trust = granted(args, [args.retriever] if _embeds(args) else [])
    display = Display()
    try:
        with display:
            mined = mine(
                args.retriever,
                args.rows,
                args.output,
                display,
                corpus=Corpus(args.corpus, tuple(args.column or ("text",)), args.corpus_instruction),
                choice=choice,
                workers=args.workers,
                trust=trust,
                verbose=args.verbose,
            )
    except KeyboardInterrupt:
        print("tailor: interrupted; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    if args.json:
        args.json.write(
            Mined(
                url=mined.url,
                rows=mined.rows,
                passages=mined.passages,
                negatives=mined.negatives,
                without_negatives=mined.without,
                unreadable=mined.unreadable,
                unreadable_passages=mined.unreadable_passages,
                truncated=mined.truncated,
            )
        )
        return 0
    if mined.truncated:
        print(truncated_line(mined.truncated))
    if mined.without:
        print(f"{mined.without:,} rows have no negative, because no passage could be chosen")
    print(f"{mined.rows:,} rows with {mined.negatives:,} negatives written to {shown_path(mined.url)}")
    return 0


def _embeds(args: argparse.Namespace) -> bool:
    return args.retriever not in (BM25, RANDOM)


def _check(args: argparse.Namespace) -> None:
    """DataError for options that contradict each other or have no effect."""
    if args.no_margin and (args.relative_margin is not None or args.absolute_margin is not None):
        raise DataError("--no-margin: a margin is given too", hint="remove one of the two options")
    last = args.range_max or RANGE
    if (args.range_min or 0) >= last:
        raise DataError(
            f"--range-min {args.range_min}: it must be below --range-max, which is {last}",
            hint="raise --range-max",
        )
    unused = dict.fromkeys(("workers", "no_margin"), f"with {args.retriever}") if not _embeds(args) else {}
    if args.retriever == RANDOM:
        names = ("relative_margin", "absolute_margin", "range_min", "range_max", "sampling")
        unused |= dict.fromkeys(names, f"with {RANDOM}")
    if args.corpus is None:
        unused |= dict.fromkeys(("column", "corpus_instruction"), "without --corpus")
    for name, when in unused.items():
        if getattr(args, name) not in (None, False):
            raise DataError(f"--{name.replace('_', '-')} has no effect {when}", hint="remove it")
