"""firefly: Firefly's conversations, whose turns have the keys `human` and `assistant`."""

from __future__ import annotations

from collections.abc import Mapping

from tailor.encode.content import refuse_media, refuse_placeholder
from tailor.encode.fields import (
    first_turn_keys,
    to_chat,
    to_entries,
    to_reasoning,
    to_system,
    to_text,
)
from tailor.encode.formats.base import MARK_KEYS, SYSTEM, TOOLS, Format, Row, own_columns
from tailor.encode.records import Record, RowError
from tailor.encode.turn_marks import mark
from tailor.spec.data import EXAMPLES


def _convert(row: Row) -> Record:
    messages = to_system(row)
    for turn in to_entries(row["conversation"], "conversation"):
        if not isinstance(turn, Mapping) or "human" not in turn or "assistant" not in turn:
            raise RowError("missing_key", "a turn of `conversation` needs the keys `human` and `assistant`")
        refuse_media(turn, "a turn")
        question = to_text(turn["human"], "human")
        refuse_placeholder(question)
        messages.append({"role": "user", "content": question})
        answer = {
            "role": "assistant",
            "content": to_text(turn["assistant"], "assistant"),
            **to_reasoning(turn),
        }
        messages.append(mark(answer, turn))
    return to_chat(messages, row.get("tools"))


FIREFLY = Format(
    "firefly",
    EXAMPLES,
    fields={**own_columns("conversation"), **SYSTEM, **TOOLS},
    required=("conversation",),
    convert=_convert,
    form=lambda picked: first_turn_keys(picked["conversation"]) >= {"human", "assistant"},
    is_chat=True,
    keys=MARK_KEYS | {"human", "assistant"},
)
