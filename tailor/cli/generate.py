"""`tailor generate`: generate answers to prompts, given as options or in a file."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from tailor.cli import retrieved
from tailor.cli.numbers import number, whole
from tailor.cli.output import Document, Output
from tailor.cli.trust import add_trust_option, granted
from tailor.encode.fields import with_system
from tailor.encode.prompt_rows import conversation
from tailor.encode.records import RowError
from tailor.encode.replies.reply import Reply
from tailor.errors import DataError, StoreError
from tailor.quiet import quiet
from tailor.store import Store

if TYPE_CHECKING:
    from tailor.artifacts.load import Loaded
    from tailor.artifacts.long_prompts import PromptRetrieval

BATCH = 16
Row = dict[str, Any]


class Shortened(Document):
    """An over-long prompt of which passages were left out."""

    row: int
    """Its number, from 1."""
    tokens: int
    """Tokens of the whole prompt."""
    kept_tokens: int
    passages: int
    """Passages before the question."""
    kept_passages: int


class Generated(Document):
    """The answers, in the order of the prompts."""

    output: str | None
    """The file that `--output` names."""
    rows: list[dict[str, Any]]
    """The prompts (the rows of `--input`), each with its `answer`, `reasoning_content` and `tool_calls` if the model gives some,
    and, with `--retrieve`, its `passage`."""
    shortened: list[Shortened]
    """The over-long prompts of which passages were left out by `data.retrieve` of the run."""


OUTPUT = Output(Generated)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run folder, or folder of an adapter or model")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", action="append", metavar="TEXT", help="prompt to answer; may be repeated")
    what.add_argument(
        "--input", metavar="FILE", help="JSONL file whose rows have `messages` or `prompt`; any fsspec URL"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="file to write the rows to, each with its `answer` (default: stdout)"
    )
    parser.add_argument(
        "--plain", action="store_true", help="continue the prompt as plain text, without a chat template"
    )
    retrieved.add_options(parser)
    add_generation_options(parser)


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `generate` and `chat` have in common."""
    add_trust_option(parser)
    parser.add_argument("--system", metavar="TEXT", help="system prompt of each conversation")
    parser.add_argument(
        "--whole-prompt",
        action="store_true",
        help="use over-long prompts whole: do not shorten them by data.retrieve of the run's recipe",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=whole(1),
        default=256,
        metavar="N",
        help="maximum length of an answer (default 256)",
    )
    parser.add_argument(
        "--temperature",
        type=number(at_least=0),
        default=0.0,
        metavar="T",
        help="sampling temperature (default 0: greedy decoding)",
    )
    parser.add_argument(
        "--top-p",
        type=number(over=0, at_most=1),
        default=1.0,
        metavar="P",
        help="nucleus sampling: sample from the most likely tokens of total probability P (default 1)",
    )
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="random seed of sampling (default 0)"
    )


def execute(args: argparse.Namespace) -> int:
    if args.prompt and not all(args.prompt):
        raise DataError("--prompt: the text is empty", hint="give each --prompt a text")
    retrieved.check_options(args)
    rows = [{"prompt": text} for text in args.prompt] if args.prompt else read_rows(args.input)
    if args.output is not None:
        _check_output(args.output)
    quiet()
    if args.retrieve is not None:
        return _report(args, retrieved.answers(args, rows), [])
    from tailor.artifacts.load import load_run
    from tailor.evaluate.continuous import generate
    from tailor.evaluate.generation import Sampling

    loaded = load_run(args.run, trust=granted(args, [args.run]))
    retrieval = retrieval_of(args)
    prompts, shortened = [], []
    for row_number, row in enumerate(rows, 1):
        ids = _ids(loaded, row, row_number, args)
        found = retrieval and retrieval.shorten(ids, loaded.tokenizer, args.max_new_tokens)
        if found:
            print(f"row {row_number}: {found.line()}", file=sys.stderr)
            shortened.append(
                Shortened(
                    row=row_number,
                    tokens=found.before,
                    kept_tokens=len(found.ids),
                    passages=found.passages,
                    kept_passages=found.kept,
                )
            )
        prompts.append(found.ids if found else ids)
    answers = generate(
        loaded.model,
        prompts,
        max_new_tokens=args.max_new_tokens,
        stop_ids=loaded.stop_ids,
        batch_size=BATCH,
        pad_id=loaded.pad_id,
        sampling=Sampling(args.temperature, args.top_p, args.seed),
    )
    replies = [
        Reply(loaded.continuation_text(prompt, answer))
        if args.plain
        else loaded.reply(prompt, answer, tools=bool(row.get("tools")))
        for row, prompt, answer in zip(rows, prompts, answers, strict=True)
    ]
    for row_number, reply in enumerate(replies, 1):
        if reply.reasoning and not reply.text:
            print(
                f"row {row_number}: the answer ends within its reasoning; raise --max-new-tokens",
                file=sys.stderr,
            )
    answered = [
        {**_without_reply(row), "answer": reply.content, **reply.extras}
        for row, reply in zip(rows, replies, strict=True)
    ]
    return _report(args, answered, shortened)


def _without_reply(row: Row) -> Row:
    """A row without an earlier answer, as when the output of another model is the input."""
    return {key: value for key, value in row.items() if key not in ("reasoning_content", "tool_calls")}


def _report(args: argparse.Namespace, answered: list[Row], shortened: list[Shortened]) -> int:
    """Write or print the answered rows. Returns the exit status."""
    if args.output or not (args.prompt or args.json):
        lines = [json.dumps(row, ensure_ascii=False) for row in answered]
        _write(args.output, "".join(f"{line}\n" for line in lines))
    elif not args.json:
        for row in answered:
            calls = [json.dumps(call["function"], ensure_ascii=False) for call in row.get("tool_calls", ())]
            print("\n".join([*([row["answer"]] if row["answer"] or not calls else []), *calls]))
    if args.json:
        args.json.write(Generated(output=args.output, rows=answered, shortened=shortened))
    return 0


def retrieval_of(args: argparse.Namespace) -> PromptRetrieval | None:
    """How over-long prompts are shortened; None if they are not."""
    from tailor.artifacts.long_prompts import prompt_retrieval

    return None if args.whole_prompt else prompt_retrieval(args.run)


def read_rows(file: str) -> list[Row]:
    """Read the rows of a JSONL file. DataError names the first line that cannot be used."""
    folder, name = _split(file)
    if not name or (folder.exists(name) and not folder.is_file(name)):
        raise DataError(f"--input {file} is a folder", hint="name a JSONL file in it")
    rows = []
    for line_number, line in enumerate(folder.read_text(name).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}:{line_number}: not valid JSON ({error})") from None
        try:
            conversation(row)
        except RowError as error:
            raise DataError(
                f"{file}:{line_number}: {error.detail or error.reason}",
                hint="give each row a `prompt` (a text) or `messages`, as in training data",
            ) from None
        rows.append(row)
    if not rows:
        raise DataError(f"{file} has no rows")
    return rows


def _ids(loaded: Loaded, row: Row, number: int, args: argparse.Namespace) -> list[int]:
    if args.plain:
        if "prompt" not in row:
            raise DataError(
                "--plain continues a `prompt`, but a row has `messages`", hint="leave --plain out"
            )
        return loaded.tokenizer.encode_prompt(row["prompt"])
    chat = conversation(row)
    try:
        messages = with_system({"system": args.system}, chat.messages)
    except RowError:
        raise DataError(
            f"--system: row {number} has a system message of its own, and it is another one",
            hint="leave --system out, or remove the system messages of the rows",
        ) from None
    return loaded.prompt_ids(messages, chat.tools)


def _split(file: str) -> tuple[Store, str]:
    folder, _, name = file.rpartition("/")
    return Store(folder or ("/" if file.startswith("/") else ".")), name


def _check_output(file: str) -> None:
    """StoreError if the output cannot be a file, before minutes of generation."""
    folder, name = _split(file)
    if folder.is_file() or not name or (folder.exists(name) and not folder.is_file(name)):
        raise StoreError(f"--output {file} cannot be written as a file", hint="name a new file in a folder")


def _write(output: str | None, text: str) -> None:
    if output is None:
        sys.stdout.write(text)
    else:
        folder, name = _split(output)
        folder.write_text(name, text)
