"""One guard per row: an odd value ends its row, by name, and never the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailor.encode.formats.base import Format
from tailor.encode.records import Chat, Completion, Pair, Rated, Record, RowError, Text, unreadable_value
from tailor.errors import TailorError

MAX_CHARACTERS = 8 << 20
"""Of a row. Tokenizing needs about 230 bytes per character of a conversation."""
MAX_DEPTH = 64
"""Of objects and lists in each other, in messages and tools."""
_PLAIN = (str, int, float, bool, type(None))


def guarded(fmt: Format, row: Any, columns: Mapping[str, str]) -> tuple[Record, int]:
    """The record of a row, and its characters. RowError for everything that is wrong with the row."""
    try:
        if isinstance(row, RowError):
            raise row
        record = fmt.record(row, columns)
        return record, _measured(record)
    except (RowError, TailorError):
        raise
    except Exception as error:
        raise unreadable_value(error) from error


def _measured(record: Record) -> int:
    """The characters of a record. RowError for too many, and for values that are no JSON."""
    characters = _characters(record)
    if characters > MAX_CHARACTERS:
        raise RowError(
            "too_long",
            f"{characters:,} characters; at most {MAX_CHARACTERS:,} of a row are read, so split it",
        )
    return characters


def _characters(record: Record) -> int:
    if isinstance(record, Text):
        return len(record.text)
    if isinstance(record, Completion):
        return len(record.prompt) + len(record.response)
    if isinstance(record, Chat):
        characters = sum(map(_of_message, record.messages))
        return characters + sum(_walked(tool, 0) for tool in record.tools) if record.tools else characters
    if isinstance(record, Pair):
        return _characters(record.chosen) + _characters(record.rejected)
    if isinstance(record, Rated):
        return _characters(record.answer)
    texts = (record.query, *record.positives, *record.negatives)
    return sum(len(text) + len(instruction or "") for instruction, text in texts)


def _of_message(message: Mapping[str, Any]) -> int:
    return sum(len(value) if type(value) is str else _walked(value, 0) for value in message.values())


def _walked(value: Any, depth: int) -> int:
    """The characters of a value of a message. RowError for what is no JSON, such as a timestamp of a Parquet file."""
    if isinstance(value, str):
        return len(value)
    if depth > MAX_DEPTH:
        raise RowError("too_deep", f"values nested over {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise RowError(
                    "bad_value", f"a key of type {type(key).__name__} in a message; only texts are keys"
                )
        return sum(len(key) + _walked(inner, depth + 1) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return 1 + sum(_walked(inner, depth + 1) for inner in value)
    if not isinstance(value, _PLAIN):
        raise RowError(
            "bad_value",
            f"a message has a value of type {type(value).__name__}; write it as a text or a number",
        )
    return 1
