"""Helper for the formats of retrieval data: a query with its passages, and a teacher's scores of these."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tailor.encode.records import Instructed, Relevance, RowError

SCORES = {"scores": ("scores",)}
"""The field of the scores of all passages of a row, the positives first."""
SPLIT_SCORES = {
    "pos_scores": ("pos_scores",),
    "neg_scores": ("neg_scores",),
    "teacher": ("teacher",),
    **SCORES,
}
"""Fields of rows with lists of positives and of negatives, as FlagEmbedding has them. `teacher` names the model of the scores."""

MAX_SCORE = 1e12
"""Largest absolute value of a teacher's score. The distillation losses compute with scores divided by a `teacher_temperature` of at
least 1e-6, and with squares of their differences. Both are finite in float32."""


def relevance(
    query: Instructed,
    positives: Iterable[Instructed],
    negatives: Iterable[Instructed],
    row: Mapping[str, Any],
) -> Relevance:
    """A record. row: the fields, of which the scores are read.

    RowError when a text is empty, or when there is no positive passage. Scores that cannot be used are no error here, because only
    distillation needs them.
    """
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
    found = _scores(row, len(record.positives), len(record.negatives))
    scores, problem = (None, found) if isinstance(found, str) else (found, "")
    return Relevance(record.query, record.positives, record.negatives, scores, problem)


def _scores(row: Mapping[str, Any], positives: int, negatives: int) -> tuple[float, ...] | str:
    """The scores of the positives and negatives, or why there are none."""
    if "pos_scores" in row or "neg_scores" in row:
        named = [("pos_scores", positives), ("neg_scores", negatives)]
    elif "scores" in row:
        named = [("scores", positives + negatives)]
    else:
        return "the row has no scores of a teacher (pos_scores and neg_scores, or scores)"
    found: list[float] = []
    for name, count in named:
        values = row.get(name, [])
        if not isinstance(values, Sequence) or not all(map(_is_number, values)):
            return f"`{name}` must be a list of numbers"
        if any(abs(value) > MAX_SCORE for value in values):
            return f"`{name}` has a score that is not between {-MAX_SCORE:g} and {MAX_SCORE:g}"
        if len(values) != count:
            return f"`{name}` has {len(values)} numbers for {count} passages"
        found += map(float, values)
    return tuple(found)


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (isinstance(value, int) or math.isfinite(value))
    )
