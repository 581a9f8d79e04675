"""A teacher's scores of the passages of rows: the logits of a cross-encoder, or the similarities of an embedding model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tailor.encode.records import Instructed, Relevance
from tailor.evaluate.batches import EMBEDDED, RERANK, Embedded, EvaluationBatch, Result, embedding
from tailor.evaluate.retrieval.collection import Text

DIGITS = 6
"""Scores are rounded to this many digits: those of a batch have rounding errors of 1e-6."""


def cross_encoder_batches(label: str, records: Iterable[Relevance]) -> list[EvaluationBatch]:
    """The batches of a cross-encoder: the distinct pairs of texts, in the order of their length. It sees no instructions."""
    pairs = sorted(
        {(record.query[1], passage[1]) for record in records for passage in _passages(record)},
        key=lambda pair: (len(pair[0]) + len(pair[1]), pair),
    )
    return [
        EvaluationBatch(
            label,
            "pairs",
            RERANK,
            tuple(range(start, min(start + EMBEDDED, len(pairs)))),
            tuple(pairs[start : start + EMBEDDED]),
        )
        for start in range(0, len(pairs), EMBEDDED)
    ]


def embedder_batches(label: str, records: Sequence[Relevance]) -> list[EvaluationBatch]:
    """The batches of an embedding model: the distinct queries and passages, with their instructions."""
    queries = dict.fromkeys(record.query for record in records)
    passages = dict.fromkeys(passage for record in records for passage in _passages(record))
    return [
        *embedding(label, "queries", [Text("", text, instruction) for instruction, text in queries]),
        *embedding(label, "passages", [Text("", text, instruction) for instruction, text in passages]),
    ]


def scores_of(
    records: Iterable[Relevance], batches: Sequence[EvaluationBatch], results: Iterable[Result]
) -> Iterator[tuple[float, ...]]:
    """The scores of each record's passages, the positives first. results: of the batches, in order."""
    pairs: dict[tuple[str, str], float] = {}
    vectors: dict[tuple[str, Instructed], np.ndarray] = {}
    for batch, result in zip(batches, results, strict=True):
        if isinstance(result, Embedded):
            keys = [(batch.part, (batch.instruction, text)) for text in batch.inputs]
            vectors.update(zip(keys, result.vectors, strict=True))
        else:
            pairs.update(zip(batch.inputs, (score for score, _ in result), strict=True))
    for record in records:
        if pairs:
            found = [pairs[record.query[1], passage[1]] for passage in _passages(record)]
        else:
            query = vectors["queries", record.query]
            found = [float(vectors["passages", passage] @ query) for passage in _passages(record)]
        yield tuple(round(score, DIGITS) for score in found)


def truncated(results: Iterable[Result]) -> int:
    """The number of texts, or of pairs of a cross-encoder, that were truncated."""
    return sum(
        one.truncated if isinstance(one, Embedded) else sum(was_cut for _, was_cut in one) for one in results
    )


def _passages(record: Relevance) -> tuple[Instructed, ...]:
    return (*record.positives, *record.negatives)
