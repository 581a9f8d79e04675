"""`tailor generate`: answers of a trained model, to prompts or to a file of them."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from tailor.cli.numbers import number, whole
from tailor.encode.formats.messages import MESSAGES
from tailor.encode.records import Chat, RowError
from tailor.errors import DataError, StoreError
from tailor.quiet import quiet
from tailor.store import Store

if TYPE_CHECKING:
    from tailor.artifacts.load import Loaded

BATCH = 16
Row = dict[str, Any]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run's folder, or a folder with an adapter or a model")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--prompt", action="append", metavar="TEXT", help="a question; may be given several times"
    )
    what.add_argument(
        "--input", metavar="FILE", help="JSON lines with `messages` or `prompt`, on any fsspec URL"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="where the rows go, with their `answer` (default: stdout)"
    )
    parser.add_argument(
        "--plain", action="store_true", help="go on from the prompt as plain text, without a chat template"
    )
    add_generation_options(parser)


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """What `generate` and `chat` share."""
    parser.add_argument("--system", metavar="TEXT", help="system turn before each conversation")
    parser.add_argument(
        "--max-new-tokens", type=whole(1), default=256, metavar="N", help="longest answer (default 256)"
    )
    parser.add_argument(
        "--temperature",
        type=number(at_least=0),
        default=0.0,
        metavar="T",
        help="0 takes the likeliest token (default), 1 draws as trained",
    )
    parser.add_argument(
        "--top-p",
        type=number(over=0, at_most=1),
        default=1.0,
        metavar="P",
        help="draw among the likeliest tokens of this mass",
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="decides the draws (default 0)")


def execute(args: argparse.Namespace) -> int:
    if args.prompt and not all(args.prompt):
        raise DataError("a prompt is empty", hint="give --prompt a text")
    rows = [{"prompt": text} for text in args.prompt] if args.prompt else read_rows(args.input)
    if args.output is not None:
        _check_output(args.output)
    quiet()
    from tailor.artifacts.load import load_run
    from tailor.evaluate.generation import generate

    loaded = load_run(args.run)
    answers = generate(
        loaded.model,
        [_ids(loaded, row, args) for row in rows],
        max_new_tokens=args.max_new_tokens,
        stop_ids=loaded.stop_ids,
        batch_size=BATCH,
        pad_id=loaded.pad_id,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
    )
    texts = [loaded.tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]
    if args.prompt and not args.output:
        print("\n".join(texts))
        return 0
    lines = [
        json.dumps({**row, "answer": text}, ensure_ascii=False) for row, text in zip(rows, texts, strict=True)
    ]
    _write(args.output, "".join(f"{line}\n" for line in lines))
    return 0


def read_rows(file: str) -> list[Row]:
    """Rows of a JSON-lines file. DataError names the first line that cannot be used."""
    folder, name = _split(file)
    if not name or (folder.exists(name) and not folder.is_file(name)):
        raise DataError(f"--input {file} is a folder", hint="name a file of JSON lines in it")
    rows = []
    for at, line in enumerate(folder.read_text(name).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}:{at}: not valid JSON ({error})") from None
        try:
            conversation(row)
        except RowError as error:
            raise DataError(
                f"{file}:{at}: {error.detail or error.reason}",
                hint="give each row a `prompt` (a text) or `messages`, as in training data",
            ) from None
        rows.append(row)
    if not rows:
        raise DataError(f"{file} has no rows")
    return rows


def conversation(row: Any) -> Chat:
    """A row's conversation up to where the model answers. RowError when it has none."""
    if isinstance(row, dict) and isinstance(row.get("prompt"), str):
        return Chat([{"role": "user", "content": row["prompt"]}], None)
    chat = MESSAGES.record(row, {})
    assert isinstance(chat, Chat)
    turns = list(chat.messages)
    while turns[-1]["role"] == "assistant":  # the reference answer, in training data
        turns.pop()
    return Chat(turns, chat.tools)


def _ids(loaded: Loaded, row: Row, args: argparse.Namespace) -> list[int]:
    if args.plain:
        if "prompt" not in row:
            raise DataError(
                "--plain goes on from a `prompt`, and a row has `messages`", hint="leave --plain out"
            )
        return loaded.tokenizer.encode_prompt(row["prompt"])
    chat = conversation(row)
    system = [{"role": "system", "content": args.system}] if args.system else []
    return loaded.prompt_ids([*system, *chat.messages], chat.tools)


def _split(file: str) -> tuple[Store, str]:
    folder, _, name = file.rpartition("/")
    return Store(folder or ("/" if file.startswith("/") else ".")), name


def _check_output(file: str) -> None:
    """StoreError when there is no room for the file, before minutes of answering."""
    folder, name = _split(file)
    if folder.is_file() or not name or (folder.exists(name) and not folder.is_file(name)):
        raise StoreError(f"--output {file} is no place for a file", hint="name a file in a folder")


def _write(output: str | None, text: str) -> None:
    if output is None:
        sys.stdout.write(text)
    else:
        folder, name = _split(output)
        folder.write_text(name, text)
