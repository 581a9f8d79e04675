"""Helper for the formats of retrieval data: a query with its passages."""

from __future__ import annotations

from collections.abc import Iterable

from tailor.encode.records import Instructed, Relevance, RowError


def relevance(
    query: Instructed, positives: Iterable[Instructed], negatives: Iterable[Instructed]
) -> Relevance:
    """A record. RowError when a text is empty, or when there is no positive passage."""
    record = Relevance(query, tuple(positives), tuple(negatives))
    if not record.positives:
        raise RowError("empty", "the row has no positive passage")
    for name, text in (
        ("the query", query),
        *(("a positive passage", text) for text in record.positives),
        *(("a negative passage", text) for text in record.negatives),
    ):
        if not text[1].strip():
            raise RowError("empty", f"{name} is empty")
    return record
