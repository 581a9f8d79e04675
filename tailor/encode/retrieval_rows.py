"""Rows of retrieval data: a query, passages that answer it, and passages that do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tailor.encode.fields import kind_of, to_list, to_text
from tailor.encode.records import Chat, Instructed, Record, Relevance, RowError

Row = Mapping[str, Any]


def gritlm(row: Row) -> Record:
    """GritLM's: each text is a string, or [instruction, text]."""
    return _relevance(
        _instructed(row["query"], "query"),
        (_instructed(text, "pos") for text in to_list(row["pos"], "pos")),
        (_instructed(text, "neg") for text in to_list(row.get("neg") or [], "neg")),
    )


def flagembedding(row: Row) -> Record:
    """FlagEmbedding's: strings, and the query's instruction beside them."""
    prompt = row.get("prompt")
    return _relevance(
        (to_text(prompt, "prompt") if prompt else None, to_text(row["query"], "query")),
        ((None, to_text(text, "pos")) for text in to_list(row["pos"], "pos")),
        ((None, to_text(text, "neg")) for text in to_list(row.get("neg") or [], "neg")),
    )


def tevatron(row: Row) -> Record:
    """Tevatron's: passages are objects with a text, and mostly a title, which stands before it."""
    return _relevance(
        (None, to_text(row["query"], "query")),
        (_titled(one, "positive_passages") for one in to_list(row["positive_passages"], "positive_passages")),
        (
            _titled(one, "negative_passages")
            for one in to_list(row.get("negative_passages") or [], "negative_passages")
        ),
    )


def sentence_transformers(row: Row) -> Record:
    """sentence-transformers' columns: an anchor, its positive, and any number of negatives."""
    negatives = [row["negative"]] if isinstance(row.get("negative"), str) else row.get("negative") or []
    return _relevance(
        (None, to_text(row["anchor"], "anchor")),
        [(None, to_text(row["positive"], "positive"))],
        ((None, to_text(text, "negative")) for text in negatives),
    )


def turns(row: Row) -> Record:
    """GritLM's conversations: a list of texts, the user's and the assistant's in turn."""
    texts = [to_text(text, "text") for text in to_list(row["text"], "text")]
    if not texts:
        raise RowError("empty", "the conversation is empty")
    if len(texts) % 2:
        raise RowError("no_answer", f"`text` has {len(texts)} turns, so the last one is the user's")
    roles = ("user", "assistant")
    return Chat([{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)])


def _relevance(query: Instructed, positives: Iterable[Instructed], negatives: Iterable[Instructed]) -> Record:
    found = Relevance(query, tuple(positives), tuple(negatives))
    if not found.positives:
        raise RowError("empty", "no passage answers the query")
    for name, text in (
        ("the query", query),
        *(("a positive", text) for text in found.positives),
        *(("a negative", text) for text in found.negatives),
    ):
        if not text[1].strip():
            raise RowError("empty", f"{name} is empty")
    return found


def _instructed(value: Any, field: str) -> Instructed:
    if isinstance(value, str):
        return None, value
    if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(part, str) for part in value):
        return value[0] or None, value[1]
    raise RowError("wrong_type", f"`{field}` must be a text or [instruction, text], not {kind_of(value)}")


def _titled(value: Any, field: str) -> Instructed:
    if not isinstance(value, Mapping) or not isinstance(value.get("text"), str):
        raise RowError("missing_key", f"each of `{field}` needs the key `text`")
    return None, f"{value.get('title') or ''} {value['text']}".strip()
