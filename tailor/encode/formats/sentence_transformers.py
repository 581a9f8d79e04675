"""sentence_transformers: columns `anchor`, `positive`, and any number of negatives (`negative`, `negative_1`, …)."""

from __future__ import annotations

from tailor.encode.fields import to_text
from tailor.encode.formats.base import Format, Row, own_columns
from tailor.encode.formats.passages import SCORES, relevance
from tailor.encode.records import Record
from tailor.spec.data import RELEVANCE


def _convert(row: Row) -> Record:
    negative = row.get("negative", [])
    negatives = negative if isinstance(negative, list) else [negative]
    return relevance(
        (None, to_text(row["anchor"], "anchor")),
        [(None, to_text(row["positive"], "positive"))],
        ((None, to_text(text, "negative")) for text in negatives),
        row,
    )


SENTENCE_TRANSFORMERS = Format(
    "sentence_transformers",
    RELEVANCE,
    fields=own_columns("anchor", "positive", "negative") | SCORES,
    required=("anchor", "positive"),
    convert=_convert,
    numbered="negative",
)
