"""flagembedding: FlagEmbedding's queries and passages as plain texts; `prompt` is the instruction of the query."""

from __future__ import annotations

from tailor.encode.fields import are_texts, to_list, to_text
from tailor.encode.formats.base import Format, Row, own_columns
from tailor.encode.formats.passages import SPLIT_SCORES, relevance
from tailor.encode.records import Record
from tailor.spec.data import RELEVANCE


def _convert(row: Row) -> Record:
    prompt = row.get("prompt")
    return relevance(
        (to_text(prompt, "prompt") if prompt else None, to_text(row["query"], "query")),
        ((None, to_text(text, "pos")) for text in to_list(row["pos"], "pos")),
        ((None, to_text(text, "neg")) for text in to_list(row.get("neg", []), "neg")),
        row,
    )


FLAGEMBEDDING = Format(
    "flagembedding",
    RELEVANCE,
    fields=own_columns("query", "pos", "neg", "prompt") | SPLIT_SCORES,
    required=("query", "pos"),
    convert=_convert,
    form=lambda picked: isinstance(picked["query"], str) and are_texts(picked["pos"]),
)
