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

    def take(self, new: Reply) -> None:
        """Print what is new."""
        before, self.reply = self.reply, self.reply + new
        if new.reasoning:
            print(new.reasoning if before.reasoning else f"{OPEN}\n{new.reasoning}", end="", flush=True)
        if new.text:
            # Calls come at the end, each on a line of its own.
            between = "\n" if before.text and new.calls else ""
            start = f"\n{CLOSE}\n\n" if self.reply.reasoning and not before.text else between
            print(f"{start}{new.text}", end="", flush=True)
