"""messages: conversations as OpenAI-style messages."""

from __future__ import annotations

from tailor.encode.fields import first_keys, to_chat, to_list, to_message
from tailor.encode.formats.base import CONVERSATION, Format, Row
from tailor.encode.records import Record
from tailor.spec.data import EXAMPLES


def _convert(row: Row) -> Record:
    entries = to_list(row["messages"], "messages")
    messages = [to_message(entry) for entry in entries]
    return to_chat(messages, row.get("tools"))


MESSAGES = Format(
    "messages",
    EXAMPLES,
    fields={"messages": ("messages", *CONVERSATION), "tools": ("tools",)},
    required=("messages",),
    convert=_convert,
    form=lambda picked: first_keys(picked["messages"]) >= {"role"},
    is_chat=True,
)
