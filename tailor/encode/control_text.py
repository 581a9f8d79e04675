"""Tokens that end or begin turns, inside the content of messages: they would cut the turn when it is tokenized."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tailor.encode.records import Chat, RowError
from tailor.encode.tokenizer import Tokenizer

CONTROL = "control_text"


def control_texts(tokenizer: Tokenizer, rendered: str, ends: Sequence[str]) -> tuple[str, ...]:
    """The texts that content must not have: ends of turns and of text, padding, and special tokens of a rendered probe.

    Models end a text with more tokens than their `eos_token`, such as Qwen's padding token `<|endoftext|>`.
    """
    found = {*ends, *(tokenizer.specials.get(name, "") for name in ("eos_token", "pad_token", "unk_token"))}
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
    if chat.tools:
        shown = json.dumps(chat.tools, ensure_ascii=False, default=str)
        if found := next((text for text in texts if text in shown), None):
            raise RowError(CONTROL, f"the tools have {found!r} in their text, which is a special token")


def _others(message: dict[str, Any]) -> list[str]:
    """The texts of a message beside its content."""
    reasoning, calls = message.get("reasoning_content"), message.get("tool_calls")
    return [
        *([reasoning] if reasoning else []),
        *([json.dumps(calls, ensure_ascii=False, default=str)] if calls else []),
    ]
