"""Negative passages of embedding data: false ones, repeated ones and those that are too easy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tailor.encode.doctor.checks.base import Check
from tailor.encode.doctor.finding import Finding, excerpt, finding_of
from tailor.encode.doctor.rows import Examined, Row, Tally
from tailor.encode.records import Relevance
from tailor.encode.similarity.words import content, mixed, words

_LETTERS = 4
"""Shorter words, apart from those of scripts without spaces, say little about the subject of a text."""
_SHARE, _TIMES = 0.05, 20


class Negatives(Check):
    """Queries with passages only."""

    def row(self, row: Row, tally: Tally) -> None:
        record = row.record
        if not isinstance(record, Relevance) or not record.negatives:
            return
        query, positives = record.query[1], [text for _, text in record.positives]
        negatives = [text for _, text in record.negatives]
        right = {content(text): "a positive" for text in positives} | {content(query): "the query"}
        ids = [content(text) for text in negatives]
        for text, identity in zip(negatives, ids, strict=True):
            if identity in right:
                tally.add("negatives/false", row, f"equals {right[identity]}: {excerpt(text)}")
                break
        repeated = [text for text, identity in zip(negatives, ids, strict=True) if ids.count(identity) > 1]
        if repeated:
            tally.add("negatives/repeated", row, excerpt(repeated[0]))
        subject = _subjects([query, *positives])
        if subject and not any(subject & _subjects([text]) for text in negatives):
            tally.add("negatives/easy", row, excerpt(negatives[0]))
        tally.pool("negatives", row, ids)
        of_query = mixed(np.array([content(query)], np.uint64))
        for name, group in (("query_negatives", ids), ("query_positives", map(content, positives))):
            pairs = mixed(of_query ^ np.array(list(group), np.uint64))
            tally.pool(name, row, pairs.tolist())

    def findings(self, examined: Examined) -> Iterator[Finding]:
        found = examined.found
        yield from finding_of(
            "false_negatives",
            "error",
            "rows with a negative that equals the query or a positive",
            found.get("negatives/false"),
        )
        yield from _positive_elsewhere(examined)
        yield from finding_of(
            "repeated_negatives",
            "warning",
            "rows that have the same negative more than once",
            found.get("negatives/repeated"),
        )
        yield from finding_of(
            "easy_negatives",
            "info",
            "rows whose negatives share no word with the query and its positives",
            found.get("negatives/easy"),
        )
        yield from _shared(examined)


def _positive_elsewhere(examined: Examined) -> list[Finding]:
    """Rows with a negative that another row has as a positive of the same query."""
    pools = examined.pools
    if "query_negatives" not in pools:
        return []
    negatives, positives = pools["query_negatives"], pools["query_positives"]
    owners = np.unique(negatives["row"][np.isin(negatives["value"], positives["value"])])
    message = "rows with a negative that is a positive of the same query"
    return finding_of("contradictory_negatives", "warning", message, examined.named(owners))


def _shared(examined: Examined) -> list[Finding]:
    """Rows whose negative is that of many other rows."""
    if "negatives" not in examined.pools:
        return []
    pool = examined.pools["negatives"]
    _, inverse, counts = np.unique(pool["value"], return_inverse=True, return_counts=True)
    rows = len(np.unique(pool["row"]))
    frequent = counts > max(_TIMES, _SHARE * rows)
    owners = np.unique(pool["row"][frequent[inverse]])
    message = f"rows with negatives that are in more than {_SHARE:.0%} of the rows ({int(frequent.sum()):,} such negatives)"
    return finding_of("shared_negatives", "warning", message, examined.named(owners))


def _subjects(texts: list[str]) -> set[str]:
    """The words that say what texts are about. A plural or an ending makes no difference: the first letters count."""
    return {
        word[:_LETTERS]
        for text in texts
        for word in words(text)
        if len(word) >= _LETTERS or (len(word) == 1 and ord(word) > 0x2E80)
    }
