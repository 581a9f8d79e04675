"""sharegpt: ShareGPT's conversations, whose turns have the keys `from` and `value`."""

from __future__ import annotations

from tailor.encode.fields import first_keys, to_chat, to_system, to_turns
from tailor.encode.formats.base import CONVERSATION, Format, Row
from tailor.encode.records import Record
from tailor.spec.data import EXAMPLES


def _convert(row: Row) -> Record:
    return to_chat([*to_system(row), *to_turns(row["conversations"], "conversations")], row.get("tools"))


SHAREGPT = Format(
    "sharegpt",
    EXAMPLES,
    fields={"conversations": CONVERSATION, "tools": ("tools",), "system": ("system",)},
    required=("conversations",),
    convert=_convert,
    form=lambda picked: first_keys(picked["conversations"]) >= {"from", "value"},
    is_chat=True,
)
