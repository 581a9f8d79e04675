"""What a row becomes: a conversation, a completion, a text, things to compare, or the reason why it cannot be read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


class RowError(Exception):
    """A row that is left out. `reason` is counted, `detail` is shown for the first few rows."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def unreadable_value(error: Exception) -> RowError:
    """The reason for a row that fails in a way that no reader, format or template foresees."""
    if isinstance(error, RecursionError):
        return RowError("too_deep", "its values are nested too deeply")
    what = " ".join(str(error).split())[:200]
    return RowError("bad_value", f"a value that cannot be read: {type(error).__name__}: {what}")


@dataclass(frozen=True)
class Chat:
    """A conversation in OpenAI's form: contents are texts, arguments of tool calls are objects."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Completion:
    """A prompt and the response to learn."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Text:
    """A plain text."""

    text: str


Answer = Chat | Completion
"""A prompt and an answer to it."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt."""

    chosen: Answer
    rejected: Answer


@dataclass(frozen=True)
class Rated:
    """An answer, and whether it is desirable."""

    answer: Answer
    desirable: bool


Instructed = tuple[str | None, str]
"""A text to embed, behind its instruction, if it has one."""


@dataclass(frozen=True)
class Relevance:
    """A query, the passages that answer it (at least one), and passages that do not."""

    query: Instructed
    positives: tuple[Instructed, ...]
    negatives: tuple[Instructed, ...]


Record = Chat | Completion | Text | Pair | Rated | Relevance


def content_hash(record: Record) -> int:
    """64 bits of the content that a row is held out by, the same wherever and in whatever order the row stands.

    Rows of one prompt or one query have one hash, whatever answers or passages they have.
    """
    import xxhash

    return int(xxhash.xxh3_64_intdigest(json.dumps(_parts(record), sort_keys=True).encode()))


def _parts(record: Record) -> Any:
    match record:
        case Text():
            return record.text
        case Completion():
            return [record.prompt, record.response]
        case Chat():
            return [record.messages, record.tools]
        case Pair():
            return _prompt(record.chosen) or [_parts(record.chosen), _parts(record.rejected)]
        case Rated():
            return _prompt(record.answer) or [_parts(record.answer), record.desirable]
        case Relevance():
            return list(record.query)


def _prompt(answer: Answer) -> Any:
    """What comes before the answer; empty where nothing does, which would put all such rows on one side."""
    if isinstance(answer, Completion):
        return answer.prompt
    learned = (turn["role"] == "assistant" and turn.get("weight") != 0 for turn in answer.messages)
    before = answer.messages[: next((at for at, is_one in enumerate(learned) if is_one), -1)]
    return [before, answer.tools] if before else []
