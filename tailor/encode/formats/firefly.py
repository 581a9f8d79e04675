"""firefly: Firefly's conversations, whose turns have the keys `human` and `assistant`."""

from __future__ import annotations

from collections.abc import Mapping

from tailor.encode.fields import first_keys, to_chat, to_list, to_system, to_text
from tailor.encode.formats.base import Format, Row, own_columns
from tailor.encode.records import Record, RowError
from tailor.spec.data import EXAMPLES


def _convert(row: Row) -> Record:
    messages = to_system(row)
    for turn in to_list(row["conversation"], "conversation"):
        if not isinstance(turn, Mapping) or "human" not in turn or "assistant" not in turn:
            raise RowError("missing_key", "a turn of `conversation` needs the keys `human` and `assistant`")
        messages.append({"role": "user", "content": to_text(turn["human"], "human")})
        messages.append({"role": "assistant", "content": to_text(turn["assistant"], "assistant")})
    return to_chat(messages, None)


FIREFLY = Format(
    "firefly",
    EXAMPLES,
    fields=own_columns("conversation", "system"),
    required=("conversation",),
    convert=_convert,
    form=lambda picked: first_keys(picked["conversation"]) >= {"human", "assistant"},
    is_chat=True,
)
