"""Builds the JSON of OpenAI's responses from the pieces of answers."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

from tailor.encode.prompts import UNFINISHED
from tailor.serve.calls import Piece, ScoredToken

Values = dict[str, Any]


class Choice:
    """One answer of a response, as its pieces arrive. counts_prompt: the first answer to its prompt."""

    def __init__(self, index: int, *, counts_prompt: bool = True) -> None:
        self.index, self.counts_prompt = index, counts_prompt
        self.text = self.reasoning = ""
        self.scored: list[ScoredToken] = []
        self.ids: list[int] = []
        self.finish_reason: str | None = None
        self.prompt_tokens = self.tokens = 0
        self.calls: list[Values] = []

    def take(self, piece: Piece) -> None:
        """Note a piece."""
        self.text += piece.text
        self.reasoning += piece.reasoning
        self.scored += piece.scored
        self.ids += piece.ids
        self.prompt_tokens, self.tokens = piece.prompt_tokens, piece.tokens
        self.calls = [{"id": f"call_{uuid.uuid4().hex[:24]}", **call.openai} for call in piece.calls]
        self.finish_reason = "tool_calls" if self.calls else piece.finish_reason


class Response:
    """A response in progress. kind: `chat.completion` or `text_completion`."""

    def __init__(
        self, kind: str, model: str, choices: Sequence[Choice], *, logprobs: bool, token_ids: bool = False
    ) -> None:
        self.is_chat, self._logprobs, self._token_ids = kind == "chat.completion", logprobs, token_ids
        self._kind, self.choices = kind, choices
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        self._head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    @property
    def usage(self) -> Values:
        prompt_tokens = sum(choice.prompt_tokens for choice in self.choices if choice.counts_prompt)
        generated = sum(choice.tokens for choice in self.choices)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": prompt_tokens + generated,
        }

    def whole(self) -> Values:
        """The response when all choices are finished."""
        return {
            **self._head,
            "object": self._kind,
            "choices": [self._choice(choice) for choice in self.choices],
            "usage": self.usage,
        }

    def chunk(self, choice: Choice, piece: Piece) -> Values:
        """A chunk of a stream with a piece that `choice.take` has noted."""
        values: Values = {
            "index": choice.index,
            "finish_reason": choice.finish_reason,
            "logprobs": self._scored(piece.scored) if self._logprobs else None,
        }
        if self.is_chat:
            delta: Values = {"content": piece.text} if piece.text else {}
            if piece.reasoning:
                delta["reasoning_content"] = piece.reasoning
            if choice.calls:
                delta["tool_calls"] = [{"index": at, **call} for at, call in enumerate(choice.calls)]
            values["delta"] = delta
        else:
            values["text"] = piece.text
        return self._chunk([values])

    def first_chunk(self, choice: Choice) -> Values:
        """The chunk with the role, which starts each answer of a chat."""
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": choice.index, "delta": delta, "finish_reason": None, "logprobs": None}])

    def usage_chunk(self) -> Values:
        """The last chunk, for `stream_options.include_usage`."""
        return {**self._chunk([]), "usage": self.usage}

    def _chunk(self, choices: list[Values]) -> Values:
        kind = "chat.completion.chunk" if self.is_chat else self._kind
        return {**self._head, "object": kind, "choices": choices}

    def _choice(self, choice: Choice) -> Values:
        values: Values = {
            "index": choice.index,
            "finish_reason": choice.finish_reason,
            "logprobs": self._scored(choice.scored) if self._logprobs else None,
        }
        if self._token_ids:
            values["token_ids"] = choice.ids
        if not self.is_chat:
            return {**values, "text": choice.text}
        message: Values = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.calls:
            message |= {"content": choice.text or None, "tool_calls": choice.calls}
        return {**values, "message": message}

    def _scored(self, tokens: Sequence[ScoredToken]) -> Values:
        if self.is_chat:
            return {
                "content": [
                    {**_entry(one.text, one.logprob), "top_logprobs": [_entry(*other) for other in one.top]}
                    for one in tokens
                ],
                "refusal": None,
            }
        return {
            "tokens": [one.text for one in tokens],
            "token_logprobs": [_number(one.logprob) for one in tokens],
            "top_logprobs": [{text: _number(logprob) for text, logprob in one.top} for one in tokens],
        }


def _entry(text: str, logprob: float) -> Values:
    # A part of a character has bytes that its text does not show.
    known = None if UNFINISHED in text else list(text.encode())
    return {"token": text, "logprob": _number(logprob), "bytes": known}


def _number(logprob: float) -> float:
    """A number that JSON has: -9999, as in vLLM, for the -inf of a masked token and for NaN."""
    return logprob if math.isfinite(logprob) else -9999.0


def event(value: Values) -> bytes:
    """A server-sent event, in ASCII: some clients end a line at U+2028 and U+0085 too."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
