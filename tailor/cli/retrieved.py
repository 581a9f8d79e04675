"""`tailor generate --retrieve`: answers from the nearest passage of an index."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tailor.cli.trust import granted
from tailor.encode.prompt_rows import conversation
from tailor.encode.records import RowError
from tailor.errors import DataError
from tailor.evaluate.reuse import TURNS


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--retrieve",
        metavar="FILE",
        help="answer each prompt with the help of its nearest passage in this file, which `tailor embed --keep text` wrote with "
        "the same model",
    )
    parser.add_argument(
        "--reuse",
        choices=tuple(TURNS),
        help="texts whose key-values are used, from the pass that embedded them, with --retrieve (default: nothing); those of "
        "documents are written by `tailor embed --key-values`",
    )
    parser.add_argument(
        "--query-instruction", metavar="TEXT", help="instruction to put before every query, with --retrieve"
    )


def check_options(args: argparse.Namespace) -> None:
    """DataError for options that have no effect together."""
    if args.retrieve is None:
        for option, value in (("--reuse", args.reuse), ("--query-instruction", args.query_instruction)):
            if value is not None:
                raise DataError(f"{option} has no effect without --retrieve", hint=f"remove {option}")
        return
    for option, value in (
        ("--plain", args.plain),
        ("--system", args.system),
        ("--whole-prompt", args.whole_prompt),
    ):
        if value:
            raise DataError(
                f"{option} has no effect with --retrieve, which writes the turn of the user itself",
                hint=f"remove {option}",
            )


def answers(args: argparse.Namespace, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each with its `answer` and its `passage` (row, score and text)."""
    queries = [_query(row, number) for number, row in enumerate(rows, 1)]
    from tailor.artifacts.load_embedder import load_with_embedder
    from tailor.cli.show import truncated_line
    from tailor.evaluate.generation import Sampling
    from tailor.evaluate.models import find_model
    from tailor.evaluate.retrieval.embedders import require_embeddings
    from tailor.evaluate.retrieved_answers import PassageReader, open_index

    reuse = args.reuse or "nothing"
    model = find_model(args.run).trusting(granted(args, [args.run]))
    require_embeddings(model.artifact.url)
    index = open_index(args.retrieve, model, reuse)
    loaded, embedder = load_with_embedder(model.ref.url, trust=model.ref.trust)
    reader = PassageReader(loaded, embedder, index, reuse)
    found = []
    for number, (row, query) in enumerate(zip(rows, queries, strict=True)):
        retrieved = reader.retrieve(query, args.query_instruction)
        ids = reader.answer(
            retrieved,
            max_new_tokens=args.max_new_tokens,
            sampling=Sampling(args.temperature, args.top_p, args.seed),
            number=number,
        )
        hit = retrieved.hit
        passage = {"row": hit.row, "score": hit.score, "text": hit.text}
        reply = loaded.reply(retrieved.ids, ids)
        found.append({**row, "passage": passage, "answer": reply.content, **reply.extras})
    if embedder.truncated:
        print(truncated_line(embedder.truncated), file=sys.stderr)
    return found


def _query(row: dict[str, Any], number: int) -> str:
    """The query of a row: its prompt, or its only message."""
    try:
        messages = conversation(row).messages
    except RowError as error:
        raise DataError(f"row {number}: {error.detail or error.reason}") from None
    if len(messages) != 1 or messages[0]["role"] != "user" or not isinstance(messages[0]["content"], str):
        raise DataError(
            f"row {number}: --retrieve needs one query, but the conversation has {len(messages)} messages",
            hint="give each row a `prompt`",
        )
    return str(messages[0]["content"])
