"""tevatron: Tevatron's queries and passages. A passage is an object with `text` and optional `title`, which is prepended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailor.encode.fields import first_keys, to_list, to_text
from tailor.encode.formats.base import Format, Row, own_columns
from tailor.encode.formats.passages import SCORES, relevance
from tailor.encode.records import Instructed, Record, RowError
from tailor.spec.data import RELEVANCE


def _convert(row: Row) -> Record:
    return relevance(
        (None, to_text(row["query"], "query")),
        (
            _titled(passage, "positive_passages")
            for passage in to_list(row["positive_passages"], "positive_passages")
        ),
        (
            _titled(passage, "negative_passages")
            for passage in to_list(row.get("negative_passages", []), "negative_passages")
        ),
        row,
    )


def _titled(value: Any, field: str) -> Instructed:
    if not isinstance(value, Mapping) or not isinstance(value.get("text"), str):
        raise RowError("missing_key", f"each entry of `{field}` needs the key `text`")
    return None, f"{value.get('title') or ''} {value['text']}".strip()


TEVATRON = Format(
    "tevatron",
    RELEVANCE,
    fields=own_columns("query", "positive_passages", "negative_passages") | SCORES,
    required=("query", "positive_passages"),
    convert=_convert,
    form=lambda picked: (
        isinstance(picked["query"], str) and "text" in first_keys(picked["positive_passages"])
    ),
)
