"""The text of an answer as it grows: whole characters, up to a stop text, and without a part of one."""

from __future__ import annotations

from collections.abc import Sequence

from tailor.encode.prompts import UNFINISHED, before_continuation, shown_ids
from tailor.encode.tokenizer import Tokenizer


class TextStream:
    """Turns tokens into pieces of text, which joined are the answer that `tailor generate` prints.

    Each token decodes a few tokens before it, not the whole answer: decoders drop or add spaces at the start of a text, and
    these tokens show which.
    """

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str] = (), *, after: Sequence[int] | None = None
    ) -> None:
        """after: the prompt that the answer continues as plain text, with its spaces. None: an answer to a conversation."""
        self._tokenizer, self._stops, self._strips = tokenizer, tuple(stops), after is None
        self._ids, self._known = before_continuation(tokenizer, after or ())
        self._read = len(self._ids)
        """`_known` is the text of the first `_read` tokens in `_ids`."""
        self._text, self._sent = "", 0
        self.stopped = False
        """Whether a stop text has ended the answer. The text ends before it."""

    def take(self, token: int) -> str:
        """The text that a token completes; often empty."""
        if self.stopped:
            return ""
        self._ids += shown_ids(self._tokenizer, [token])
        text = self._tokenizer.decode(self._ids)
        if len(text) > len(self._known) and not text.endswith(UNFINISHED):
            self._text += text[len(self._known) :]
            self._ids = self._ids[self._read :]
            self._read, self._known = len(self._ids), self._tokenizer.decode(self._ids)
        end = self._first_stop()
        return self._send(len(self._text) - self._held() if end is None else end)

    def end(self) -> str:
        """The remaining text, after the last token."""
        if self.stopped:
            return ""
        self._text += self._tokenizer.decode(self._ids)[len(self._known) :]
        end = self._first_stop()
        return self._send(len(self._text) if end is None else end)

    def _first_stop(self) -> int | None:
        found = [at for stop in self._stops if (at := self._text.find(stop)) >= 0]
        self.stopped = bool(found)
        return min(found, default=None)

    def _held(self) -> int:
        """The number of characters at the end of the text that may be the beginning of a stop text."""
        sizes = (
            size
            for stop in self._stops
            for size in range(min(len(stop) - 1, len(self._text)), 0, -1)
            if self._text.endswith(stop[:size])
        )
        return max(sizes, default=0)

    def _send(self, end: int) -> str:
        """What is new in the text before `end`."""
        text = self._text[:end].strip() if self._strips else self._text[:end]
        piece, self._sent = text[self._sent :], max(self._sent, len(text))
        return piece
