"""`tailor chat`: a conversation with a trained model, answer by answer as it is written."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tailor.cli.generate import add_generation_options
from tailor.quiet import quiet

if TYPE_CHECKING:
    from tailor.artifacts.load import Loaded

HELP = (
    "/reset forgets the conversation, /system TEXT sets the system turn and forgets it (without TEXT there is none), "
    "/quit ends (so does end of input); Ctrl-C stops an answer"
)
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run's folder, or a folder with an adapter or a model")
    parser.add_argument(
        "--base",
        action="store_true",
        help="let the base answer each prompt too; the conversation goes on from the tuned model's answers",
    )
    add_generation_options(parser)


def execute(args: argparse.Namespace) -> int:
    quiet()
    from tailor.artifacts.load import load_run

    loaded = load_run(args.run)
    loaded.require_template()
    if args.base:
        loaded.require_adapter()
    talking = sys.stdin.isatty()
    if talking:
        print(HELP)
    first = _system(args.system)
    messages = list(first)
    for line in _lines(talking):
        if line == "/quit":
            break
        if line == "/reset":
            messages = list(first)
        elif line == "/help":
            print(HELP)
        elif line == "/system" or line.startswith("/system "):
            first = _system(line.removeprefix("/system").strip())
            messages = list(first)
        elif line.startswith("/") and line[1:].isalpha():
            print(f"{line} is no command; {HELP}")
        else:
            asked = [*messages, {"role": "user", "content": line}]
            if args.base:
                print("base   ", end="", flush=True)
                with loaded.without_adapter():
                    answered = answer(loaded, asked, args) is not None
                if not answered:
                    continue
                print("tuned  ", end="", flush=True)
            if (text := answer(loaded, asked, args)) is not None:
                messages = [*asked, {"role": "assistant", "content": text}]
    return 0


def _system(text: str | None) -> list[dict[str, Any]]:
    """How every conversation begins."""
    return [{"role": "system", "content": text}] if text else []


def answer(loaded: Loaded, messages: list[dict[str, Any]], args: argparse.Namespace) -> str | None:
    """Generate the next turn, print it as it comes, and return it; nothing when there is no room for it."""
    from tailor.evaluate.generation import generate

    prompt = loaded.prompt_ids(messages)
    room = (
        args.max_new_tokens
        if loaded.context is None
        else min(args.max_new_tokens, loaded.context - len(prompt))
    )
    if room < 1:
        print(
            f"the conversation has {len(prompt)} tokens and the model takes {loaded.context}; /reset starts anew"
        )
        return None
    stream = Stream(loaded)
    try:
        generate(
            loaded.model,
            [prompt],
            max_new_tokens=room,
            stop_ids=loaded.stop_ids,
            batch_size=1,
            pad_id=loaded.pad_id,
            temperature=args.temperature,
            top_p=args.top_p,
            seed=args.seed + len(messages),  # or the same question would always be answered alike
            on_token=stream.take,
        )
    except KeyboardInterrupt:
        print(" …", end="")
    stream.end()
    return stream.text


class Stream:
    """Prints text as its tokens come. A character of several tokens waits for the last of them."""

    def __init__(self, loaded: Loaded) -> None:
        self._tokenizer, self._stops = loaded.tokenizer, set(loaded.stop_ids)
        self._ids: list[int] = []
        self.text = ""

    def take(self, token: int) -> None:
        if token in self._stops:
            return
        self._ids.append(token)
        if not self._decoded().endswith(UNFINISHED):
            self._show(end="")

    def end(self) -> None:
        """Print what still waits, and end the line."""
        self._show(end="\n")

    def _decoded(self) -> str:
        # The space that a template puts before an answer is the template's: it writes its own in the next turn.
        return self._tokenizer.decode(self._ids, skip_special_tokens=True).lstrip()

    def _show(self, *, end: str) -> None:
        text = self._decoded()
        print(text[len(self.text) :], end=end, flush=True)
        self.text = text


def _lines(talking: bool) -> Iterator[str]:
    """The user's turns: one per line, empty ones left out."""
    if talking:
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() takes its line editing from it
    while True:
        try:
            line = input("› " if talking else "").strip()
        except EOFError:
            if talking:
                print()
            return
        if line:
            yield line
