"""messages: conversations as OpenAI-style messages."""

from __future__ import annotations

from tailor.encode.fields import first_turn_keys, to_chat, to_entries, to_message, with_system
from tailor.encode.formats.base import CONVERSATION, MESSAGE_KEYS, SYSTEM, TOOLS, Format, Row
from tailor.encode.records import Record
from tailor.spec.data import EXAMPLES


def _convert(row: Row) -> Record:
    entries = to_entries(row["messages"], "messages")
    messages = [to_message(entry) for entry in entries]
    return to_chat(with_system(row, messages), row.get("tools"))


MESSAGES = Format(
    "messages",
    EXAMPLES,
    fields={"messages": ("messages", *CONVERSATION), **SYSTEM, **TOOLS},
    required=("messages",),
    convert=_convert,
    form=lambda picked: first_turn_keys(picked["messages"]) >= {"role"},
    is_chat=True,
    keys=MESSAGE_KEYS,
)
