"""alpaca: Stanford Alpaca's instruction, optional input, and output."""

from __future__ import annotations

from tailor.encode.fields import to_chat, to_question, to_text
from tailor.encode.formats.base import SYSTEM, TOOLS, Format, Row, own_columns
from tailor.encode.records import Record
from tailor.spec.data import EXAMPLES


def _convert(row: Row) -> Record:
    answer = {"role": "assistant", "content": to_text(row["output"], "output")}
    return to_chat([*to_question(row), answer], row.get("tools"))


ALPACA = Format(
    "alpaca",
    EXAMPLES,
    fields={**own_columns("instruction", "input", "output", "history"), **SYSTEM, **TOOLS},
    required=("instruction", "output"),
    convert=_convert,
    is_chat=True,
)
