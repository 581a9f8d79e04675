"""Conversations whose rendering is compared between two programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tailor.encode.template import Message
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import TemplateError

_SYSTEM: Message = {"role": "system", "content": "Be brief."}
_EMPTY_SYSTEM: Message = {"role": "system", "content": ""}
_USER: Message = {"role": "user", "content": "Hello { you }"}
_ANSWER: Message = {"role": "assistant", "content": 'Good "day" %} to\n\nyou'}
_AGAIN: Message = {"role": "user", "content": "And\nthen, 42?"}
_ANSWER_AGAIN: Message = {"role": "assistant", "content": "Straße 你好"}
_TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Its name"}},
                "required": ["city"],
            },
        },
    },
)
_CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}],
}
_RESULT: Message = {"role": "tool", "name": "weather", "content": "22 degrees"}


@dataclass(frozen=True)
class Probe:
    """A conversation that ends before the assistant's answer."""

    name: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()


TURNS = (
    Probe("a question", (_USER,)),
    Probe("several turns", (_USER, _ANSWER, _AGAIN)),
    Probe("many turns", (_USER, _ANSWER, _AGAIN, _ANSWER_AGAIN, _USER, _ANSWER, _AGAIN)),
)
SYSTEM = (
    Probe("a system message", (_SYSTEM, _USER)),
    Probe("a system message and several turns", (_SYSTEM, _USER, _ANSWER, _AGAIN, _ANSWER_AGAIN, _USER)),
)
EMPTY_SYSTEM = (Probe("an empty system message", (_EMPTY_SYSTEM, _USER)),)
LATE_SYSTEM = (Probe("a system message after the first message", (_USER, _ANSWER, _SYSTEM, _AGAIN)),)
SPACES = (
    Probe(
        "white space around messages",
        (
            {"role": "user", "content": "  b \n"},
            {"role": "assistant", "content": " c  "},
            {"role": "user", "content": "\n d "},
        ),
    ),
)
TOOLS = (
    Probe("tools", (_USER,), _TOOLS),
    Probe("a tool call and its result", (_USER, _CALL, _RESULT), _TOOLS),
)


def rendered(tokenizer: Tokenizer, probe: Probe) -> str | None:
    """The prompt of a probe, up to the answer; None when the chat template rejects the conversation."""
    try:
        return tokenizer.render(list(probe.messages), list(probe.tools) or None, add_generation_prompt=True)
    except TemplateError:
        return None


def starts_with_bos(tokenizer: Tokenizer) -> bool:
    """Whether the chat template begins a prompt with the BOS."""
    bos = tokenizer.specials.get("bos_token")
    texts = [text for probe in (*TURNS, *SYSTEM) if (text := rendered(tokenizer, probe)) is not None]
    return bool(bos) and bool(texts) and all(text.startswith(str(bos)) for text in texts)
