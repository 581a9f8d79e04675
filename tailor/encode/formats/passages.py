"""Queries and their passages, shared by the formats of retrieval data."""

from __future__ import annotations

from collections.abc import Iterable

from tailor.encode.records import Instructed, Relevance, RowError


def relevance(
    query: Instructed, positives: Iterable[Instructed], negatives: Iterable[Instructed]
) -> Relevance:
    """A record in which every text is non-empty and at least one passage answers the query."""
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
