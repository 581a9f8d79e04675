"""How `tailor chat` prints replies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tailor.encode.reasoning import CLOSE, OPEN
from tailor.encode.replies.reply import EMPTY, Reply

Answerer = Callable[[list[dict[str, Any]]], Reply | None]
"""Prints the next turn of a conversation piece by piece, and returns it. None: there is none, and the conversation stays."""


class ReplyPrinter:
    """Prints a reply as it grows: reasoning in `<think>` tags, the answer, and each tool call as a line of JSON."""

    def __init__(self) -> None:
        self.reply = EMPTY
        self._is_open = False
        """Whether `<think>` is printed and `</think>` is not."""

    def take(self, new: Reply) -> None:
        """Print what is new."""
        before, self.reply = self.reply, self.reply + new
        if new.reasoning and not self._is_open:
            # A preamble (Harmony) may be printed before.
            self._print(("\n\n" if before.text else "") + f"{OPEN}\n{new.reasoning.lstrip()}")
            self._is_open = True
        elif new.reasoning:
            self._print(new.reasoning)
        if new.text:
            # Calls come at the end, each on a line of its own.
            between = "\n" if before.text and new.calls else ""
            self._print(f"\n{CLOSE}\n\n{new.text.lstrip()}" if self._is_open else between + new.text)
            self._is_open = False

    def _print(self, text: str) -> None:
        print(text, end="", flush=True)
