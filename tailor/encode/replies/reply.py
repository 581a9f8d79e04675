"""A reply, and the interface of the forms in which models write one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class ToolCall:
    """arguments: JSON text, as the model wrote it."""

    name: str
    arguments: str

    @property
    def openai(self) -> dict[str, Any]:
        """The call as in OpenAI's interface, without an id."""
        return {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}

    @property
    def text(self) -> str:
        """The call as a text to show or to score."""
        return json.dumps({"name": self.name, "arguments": self.arguments}, ensure_ascii=False)


@dataclass(frozen=True)
class Reply:
    """What the assistant says (`content`), what it thinks before, and the tools that it calls."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()

    @property
    def text(self) -> str:
        """The content and the calls, as a text to show or to score."""
        return "\n".join(filter(None, [self.content, *(one.text for one in self.calls)]))

    @property
    def extras(self) -> dict[str, Any]:
        """What an assistant's message has beside its content: `reasoning_content` and `tool_calls`, only if there are some."""
        return {
            **({"reasoning_content": self.reasoning} if self.reasoning else {}),
            **({"tool_calls": [one.openai for one in self.calls]} if self.calls else {}),
        }

    def __add__(self, more: Reply) -> Reply:
        """The reply with what is new of it."""
        return Reply(self.content + more.content, self.reasoning + more.reasoning, self.calls + more.calls)


EMPTY = Reply()
_JSON = json.JSONDecoder()


class ReplyFormat(Protocol):
    """How a family of models writes replies. mark: a text that its chat templates have; all have the empty one."""

    mark: str

    def read(self, text: str, prompt: str, *, ended: bool, tools: bool) -> Reply:
        """The reply in the text of an answer. prompt: the end of the prompt, where the template may have begun the answer.

        Until the text has ended, content and reasoning are beginnings of what they will be, and there are no calls.
        """


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is; None if it is none."""
    value, end = json_object_at(text, 0)
    return value if end == len(text) else None


def json_object_at(text: str, at: int) -> tuple[dict[str, Any], int]:
    """The JSON object that begins at a position, and its end; ({}, -1) if there is none that other programs can read."""
    try:
        value, end = _JSON.raw_decode(text, at)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # NaN, and halves of characters
    except (ValueError, RecursionError):
        return {}, -1
    return (value, end) if isinstance(value, dict) else ({}, -1)


def without_part_of(text: str, marks: Sequence[str]) -> str:
    """The text without the end that may become one of the marks."""
    sizes = (
        size
        for mark in marks
        for size in range(min(len(mark) - 1, len(text)), 0, -1)
        if text.endswith(mark[:size])
    )
    return text[: len(text) - max(sizes, default=0)]
