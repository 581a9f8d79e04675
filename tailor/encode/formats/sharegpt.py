"""sharegpt: ShareGPT's conversations, whose turns have the keys `from` and `value`."""

from __future__ import annotations

from tailor.encode.fields import first_turn_keys, to_chat, to_turns, with_system
from tailor.encode.formats.base import CONVERSATION, SYSTEM, TOOLS, TURN_KEYS, Format, Row
from tailor.encode.records import Record
from tailor.spec.data import EXAMPLES


def _convert(row: Row) -> Record:
    return to_chat(with_system(row, to_turns(row["conversations"], "conversations")), row.get("tools"))


SHAREGPT = Format(
    "sharegpt",
    EXAMPLES,
    fields={"conversations": CONVERSATION, **SYSTEM, **TOOLS},
    required=("conversations",),
    convert=_convert,
    form=lambda picked: first_turn_keys(picked["conversations"]) >= {"from", "value"},
    is_chat=True,
    keys=TURN_KEYS,
)
