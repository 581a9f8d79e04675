"""The text of an answer as it grows: whole characters, up to a stop text, and without a part of one."""

from __future__ import annotations

from collections.abc import Sequence

from tailor.encode.prompts import answer_text
from tailor.encode.tokenizer import Tokenizer

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers decode an incomplete UTF-8 character to."""


class TextStream:
    """Turns tokens into pieces of text, which joined are the answer that `tailor generate` prints."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._ids: list[int] = []
        self._sent = ""
        self.stopped = False
        """Whether a stop text has ended the answer. The text ends before it."""

    def take(self, token: int) -> str:
        """The text that a token completes; often empty."""
        self._ids.append(token)
        if self.stopped:
            return ""
        text = answer_text(self._tokenizer, self._ids).rstrip(_UNFINISHED)
        end = self._first_stop(text)
        return self._send(text[: len(text) - self._held(text)] if end is None else text[:end])

    def end(self) -> str:
        """The remaining text, after the last token."""
        if self.stopped:
            return ""
        text = answer_text(self._tokenizer, self._ids)
        end = self._first_stop(text)
        return self._send(text if end is None else text[:end])

    def _first_stop(self, text: str) -> int | None:
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        self.stopped = bool(found)
        return min(found, default=None)

    def _held(self, text: str) -> int:
        """The number of characters at the end of a text that may be the beginning of a stop text."""
        sizes = (
            size
            for stop in self._stops
            for size in range(min(len(stop) - 1, len(text)), 0, -1)
            if text.endswith(stop[:size])
        )
        return max(sizes, default=0)

    def _send(self, text: str) -> str:
        piece = text[len(self._sent) :]
        if piece:
            self._sent = text
        return piece
