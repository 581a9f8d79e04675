"""What the HTTP server asks of a backend, and the pieces of its answers. Ray passes them to replicas and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tailor.encode.replies.reply import ToolCall
from tailor.evaluate.generation import Sampling


@dataclass(frozen=True)
class Call:
    """A request for one answer: a conversation (messages, tools) or a prompt of plain text or token ids.

    max_tokens: at most; fewer when the model's context has no room for more. number: of the answer, for several to one
    prompt. top: number of alternatives per token; None without log-probabilities.
    """

    model: str
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    prompt: str | list[int] | None = None
    max_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    number: int = 0
    stops: tuple[str, ...] = ()
    top: int | None = None


@dataclass(frozen=True)
class EmbedCall:
    """A request for embeddings of this many dimensions; None for all. truncate: texts that are too long; else they are an error."""

    model: str
    texts: Sequence[str]
    instruction: str | None = None
    dimensions: int | None = None
    truncate: bool = False


@dataclass(frozen=True)
class RerankCall:
    """A request for the scores of documents. truncate: as for embeddings."""

    model: str
    query: str
    documents: Sequence[str]
    truncate: bool = False


@dataclass(frozen=True)
class ScoredToken:
    """A token of an answer, its log-probability, and the most likely tokens at its position with theirs."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Piece:
    """A part of an answer. The first one has no text, and comes as soon as the request is accepted.

    text, reasoning: what is new in each. calls: with the last piece. Plain completions have text alone.
    ids: the tokens of this piece, without the stop token. tokens: generated so far. finish_reason: `stop` or `length`, with the last piece. scored: tokens, if asked for.
    """

    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    ids: tuple[int, ...] = ()
    scored: tuple[ScoredToken, ...] = ()
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Load:
    """How busy the engine is: answers that are being generated, requests that wait, and decoding steps so far."""

    active: int
    waiting: int
    steps: int
