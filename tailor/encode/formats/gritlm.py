"""gritlm: GritLM's queries and passages; each is a text or an [instruction, text] pair."""

from __future__ import annotations

from typing import Any

from tailor.encode.fields import are_texts, kind_of, to_list, to_text
from tailor.encode.formats.base import Format, Row, own_columns
from tailor.encode.formats.passages import SPLIT_SCORES, relevance
from tailor.encode.records import Instructed, Record, RowError
from tailor.spec.data import RELEVANCE

FIELDS = own_columns("query", "pos", "neg", "prompt") | SPLIT_SCORES


def convert(row: Row) -> Record:
    """A query with its passages. `prompt` is the instruction of the query, as in FlagEmbedding."""
    instruction, query = _instructed(row["query"], "query")
    prompt = to_text(row["prompt"], "prompt") if row.get("prompt") else None
    if instruction and prompt and instruction != prompt:
        raise RowError("bad_value", "the instruction of `query` differs from `prompt`; remove one of them")
    return relevance(
        (instruction or prompt, query),
        (_instructed(text, "pos") for text in to_list(row["pos"], "pos")),
        (_instructed(text, "neg") for text in to_list(row.get("neg", []), "neg")),
        row,
    )


def _is_pair(value: Any) -> bool:
    """Whether a value is [instruction, text]."""
    return are_texts(value) and len(value) == 2


def _instructed(value: Any, field: str) -> Instructed:
    if isinstance(value, str):
        return None, value
    if _is_pair(value):
        return value[0] or None, value[1]
    raise RowError("wrong_type", f"`{field}` must be a text or [instruction, text], not {kind_of(value)}")


GRITLM = Format(
    "gritlm",
    RELEVANCE,
    fields=FIELDS,
    required=("query", "pos"),
    convert=convert,
    # Rows with plain texts only have the format flagembedding.
    form=lambda picked: any(map(_is_pair, (picked["query"], *picked["pos"], *picked.get("neg", ())))),
    includes=("flagembedding",),
)
