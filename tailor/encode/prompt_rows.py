"""Rows to generate from: a `prompt`, or the `messages` of a conversation."""

from __future__ import annotations

from typing import Any

from tailor.encode.formats.messages import MESSAGES
from tailor.encode.records import Chat


def conversation(row: Any) -> Chat:
    """A row's conversation without the last assistant turns. RowError if the row has none."""
    if isinstance(row, dict) and isinstance(row.get("prompt"), str):
        return Chat([{"role": "user", "content": row["prompt"]}], None)
    chat = MESSAGES.record(row, {})
    assert isinstance(chat, Chat)
    turns = list(chat.messages)
    while turns[-1]["role"] == "assistant":  # the reference answer, in training data
        turns.pop()
    return Chat(turns, chat.tools)
