"""text: plain texts."""

from __future__ import annotations

from tailor.encode.fields import to_text
from tailor.encode.formats.base import Format, Row, own_columns
from tailor.encode.records import Record, RowError, Text
from tailor.spec.data import TEXTS


def _convert(row: Row) -> Record:
    text = to_text(row["text"], "text")
    if not text.strip():
        raise RowError("empty", "`text` is empty")
    return Text(text)


TEXT = Format("text", TEXTS, fields=own_columns("text"), required=("text",), convert=_convert)
