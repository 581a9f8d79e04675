"""Tokens that end or begin turns, inside the content of messages: they would cut the turn when it is tokenized."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tailor.encode.records import Chat, RowError
from tailor.encode.tokenizer import Tokenizer

CONTROL = "control_text"


def control_texts(tokenizer: Tokenizer, rendered: str, ends: Sequence[str]) -> tuple[str, ...]:
    """The texts that content must not have: ends of turns, the end of text, and special tokens of a rendered probe."""
    found = {*ends, tokenizer.specials.get("eos_token", "")}
    for token in set(tokenizer.encode(rendered)):
        if token in tokenizer.added and tokenizer.added[token].special:
            found.add(tokenizer.added[token].content)
    return tuple(sorted(text for text in found if text.strip()))


def check(chat: Chat, texts: Sequence[str]) -> None:
    """RowError for a message that has one of the texts."""
    for message in chat.messages:
        content = message["content"]
        if len(message) > 2:
            content = "\n".join([content, *_others(message)])
        for text in texts:
            if text in content:
                raise RowError(
                    CONTROL,
                    f"the {message['role']} message has {text!r} in its text, which the tokenizer reads as the "
                    "token of a turn's border",
                )


def _others(message: dict[str, Any]) -> list[str]:
    """The texts of a message beside its content."""
    reasoning, calls = message.get("reasoning_content"), message.get("tool_calls")
    return [
        *([reasoning] if reasoning else []),
        *([json.dumps(calls, ensure_ascii=False, default=str)] if calls else []),
    ]
