"""`tailor chat`: chat with a trained model; answers are printed token by token."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tailor.cli.generate import add_generation_options, retrieval_of
from tailor.cli.reply_printer import Answerer, ReplyPrinter
from tailor.cli.trust import granted
from tailor.encode.reasoning import CLOSE, OPEN
from tailor.encode.replies.reply import Reply
from tailor.errors import DataError
from tailor.quiet import quiet

if TYPE_CHECKING:
    from tailor.artifacts.load import Loaded

HELP = (
    "/reset starts a new conversation, /system TEXT starts one with a new system prompt (no TEXT: without one), "
    "/help shows this line, /quit or Ctrl-D ends; Ctrl-C stops an answer"
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        nargs="?",
        help="run folder, or folder of an adapter or model; with --url: the name of a model on the server",
    )
    parser.add_argument(
        "--url",
        metavar="URL",
        help="chat with a model that is served at this URL (`tailor serve`, or another server with OpenAI's interface); "
        "TAILOR_API_KEY in the environment is its key",
    )
    parser.add_argument(
        "--base",
        action="store_true",
        help="print the base model's answer to each prompt too; the conversation continues with the tuned model's",
    )
    add_generation_options(parser)


def execute(args: argparse.Namespace) -> int:
    quiet()
    if args.url is not None:
        from tailor.cli.chat_url import answerer

        return converse(args, answerer(args))
    if args.run is None:
        raise DataError("there is no run to chat with", hint="name a run, or a server with --url")
    return converse(args, _answerer(args))


def converse(args: argparse.Namespace, reply: Answerer) -> int:
    """The conversation of a user on stdin. Returns the exit status."""
    interactive = sys.stdin.isatty()
    if interactive:
        print(HELP)
    system_turns = _system(args.system)
    messages = list(system_turns)
    for line in _lines(interactive):
        if line == "/quit":
            break
        if line == "/reset":
            messages = list(system_turns)
        elif line == "/help":
            print(HELP)
        elif line == "/system" or line.startswith("/system "):
            system_turns = _system(line.removeprefix("/system").strip())
            messages = list(system_turns)
        elif line.startswith("/") and line[1:].isalpha():
            print(f"{line}: unknown command; {HELP}")
        else:
            turns = [*messages, {"role": "user", "content": line}]
            if (said := reply(turns)) is not None:
                messages = [*turns, _message(said)]
    return 0


def _answerer(args: argparse.Namespace) -> Answerer:
    """Answers with the model in this process."""
    from tailor.artifacts.load import load_run

    loaded = load_run(args.run, trust=granted(args, [args.run]))
    loaded.require_template()
    if args.base:
        loaded.require_adapter()
    retrieval = retrieval_of(args)

    def reply(turns: list[dict[str, Any]]) -> str | None:
        prompt = loaded.prompt_ids(turns)
        if retrieval and (found := retrieval.shorten(prompt, loaded.tokenizer, args.max_new_tokens)):
            print(found.line(), file=sys.stderr)
            prompt = found.ids
        seed = args.seed + len(turns)  # or a repeated question would get the same answer
        if args.base:
            print("base   ", end="", flush=True)
            with loaded.without_adapter():
                answered = answer(loaded, prompt, args, seed) is not None
            if not answered:
                return None
            print("tuned  ", end="", flush=True)
        return answer(loaded, prompt, args, seed)

    return reply


def _message(said: Reply) -> dict[str, Any]:
    """The assistant's message in the history, with its reasoning in the content: templates without a key for it read it there.

    Calls are text too: there are no tools, and so no results.
    """
    thoughts = f"{OPEN}\n{said.reasoning}\n{CLOSE}\n\n" if said.reasoning else ""
    return {"role": "assistant", "content": thoughts + said.text}


def _system(text: str | None) -> list[dict[str, Any]]:
    """The first turns of every conversation: the system prompt, if there is one."""
    return [{"role": "system", "content": text}] if text else []


def answer(loaded: Loaded, prompt: list[int], args: argparse.Namespace, seed: int) -> Reply | None:
    """Generate the next turn, print it token by token, and return it. None if the context is full."""
    from tailor.encode.replies.reading import reader
    from tailor.evaluate.continuous import generate
    from tailor.evaluate.generation import Sampling
    from tailor.serve.text import TextStream

    if loaded.context is not None and len(prompt) >= loaded.context:
        print(
            f"the conversation has {len(prompt)} tokens, the model's maximum is {loaded.context}; /reset starts a new one"
        )
        return None
    stream, reads, printer = TextStream(loaded.tokenizer), reader(loaded.tokenizer, prompt), ReplyPrinter()

    def take(token: int) -> None:
        if token not in loaded.stop_ids:
            printer.take(reads.take(stream.take(token)))

    try:
        generate(
            loaded.model,
            [prompt],
            max_new_tokens=args.max_new_tokens,
            stop_ids=loaded.stop_ids,
            batch_size=1,
            pad_id=loaded.pad_id,
            sampling=Sampling(args.temperature, args.top_p, seed),
            on_token=take,
        )
    except KeyboardInterrupt:
        print(" …", end="")
    printer.take(reads.take(stream.end(), ended=True))
    print()
    return printer.reply


def _lines(interactive: bool) -> Iterator[str]:
    """The user's turns: one per line, empty lines skipped."""
    if interactive:
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives input() line editing
    while True:
        try:
            line = input("› " if interactive else "").strip()
        except EOFError:
            if interactive:
                print()
            return
        if line:
            yield line
