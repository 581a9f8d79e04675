"""`tailor search`: try a retriever in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tailor.cli.numbers import whole
from tailor.cli.output import Document, Output
from tailor.cli.trust import add_trust_option, granted
from tailor.quiet import quiet

if TYPE_CHECKING:
    from tailor.evaluate.search_file import Hit


class FoundPassage(Document):
    """A passage, the nearest first."""

    row: int
    """Row of the corpus, from 1."""
    score: float
    text: str


class SearchedQuery(Document):
    """A query and its nearest passages."""

    query: str
    passages: list[FoundPassage]


class Searched(Document):
    """The results of all queries."""

    passages: int
    """Number of passages of the corpus."""
    queries: list[SearchedQuery]
    truncated: int
    """Texts that were longer than the model's maximum length."""


OUTPUT = Output(Searched)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", help="run folder of a model that makes embeddings, or folder of its adapter or model"
    )
    parser.add_argument(
        "corpus",
        help="JSONL, JSON, Parquet, CSV or text file of passages, or a folder of them; or a file that `tailor embed` wrote with "
        "this model, which needs no time to embed",
    )
    parser.add_argument("query", nargs="*", help="what to search (default: each line of the standard input)")
    parser.add_argument(
        "--top",
        type=whole(1),
        default=5,
        metavar="N",
        help="number of passages to show for each query (default: 5)",
    )
    parser.add_argument(
        "--column",
        action="append",
        metavar="NAME",
        help="column with the text (default: text); with several --column options the texts are joined by a space",
    )
    parser.add_argument("--instruction", metavar="TEXT", help="instruction to put before every query")
    parser.add_argument(
        "--corpus-instruction", metavar="TEXT", help="instruction to put before every passage"
    )
    add_trust_option(parser)


def execute(args: argparse.Namespace) -> int:
    quiet()
    from tailor.cli.show import truncated_line
    from tailor.evaluate.embed_file import Request
    from tailor.evaluate.models import find_model
    from tailor.evaluate.retrieval.embedders import TextEmbedder, require_embeddings
    from tailor.evaluate.search_file import check_corpus, open_passages

    model = find_model(args.run).trusting(granted(args, [args.run]))
    require_embeddings(model.artifact.url)
    request = Request(args.corpus, tuple(args.column or ("text",)), instruction=args.corpus_instruction)
    check_corpus(request)
    embedder = TextEmbedder(model.ref.url, trust=model.ref.trust)
    passages = open_passages(request, model, embedder, _report)
    found = []
    for query in _queries(args.query):
        hits = passages.search(embedder, query, args.instruction, args.top)
        if args.json:
            shown = [FoundPassage(row=hit.row, score=hit.score, text=hit.text) for hit in hits]
            found.append(SearchedQuery(query=query, passages=shown))
        else:
            _print(query, hits)
    if args.json:
        args.json.write(Searched(passages=len(passages), queries=found, truncated=embedder.truncated))
    elif embedder.truncated:
        print(truncated_line(embedder.truncated), file=sys.stderr)
    return 0


def _queries(given: list[str]) -> Iterator[str]:
    """The queries of the command line, or the lines of the standard input that are not blank."""
    if given:
        yield from given
        return
    if sys.stdin.isatty():
        print("type a query; Ctrl-D ends", file=sys.stderr)
    yield from (line.strip() for line in sys.stdin if line.strip())


def _report(count: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{count:,} passages embedded", end="\n" if count % 10_000 == 0 else "", file=sys.stderr)


def _print(query: str, hits: list[Hit]) -> None:
    from tailor.cli.show import one_line
    from tailor.printable import printable

    print(printable(query))
    for rank, hit in enumerate(hits, 1):
        print(f"{rank:3}  {hit.score:7.4f}  row {hit.row}  {printable(one_line(hit.text))}", flush=True)
