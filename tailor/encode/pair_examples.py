"""Encodes queries with passages as pairs of texts for a cross-encoder, by `PairTemplate`.

The first span of a pair is the passage, which truncation cuts. A second one,
the tokens after it, means that the tokens from the passage on have token type 1; without it, all tokens have type 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tailor.encode.embedding_examples import TextFormat, unscored
from tailor.encode.masks import EncodedExample
from tailor.encode.pair_template import PairTemplate
from tailor.encode.records import Instructed, Relevance, RowError
from tailor.encode.tokenizer import Tokenizer
from tailor.spec.methods.base import TextLimits

_PLAIN = TextFormat("{instruction}", "", joined=True)


def token_types(length: int, spans: np.ndarray) -> np.ndarray:
    """int64[length]: the token types of a pair."""
    types = np.zeros(length, np.int64)
    if len(spans) > 1:
        types[int(spans[0][0]) :] = 1
    return types


def with_passage(
    own: EncodedExample, other: EncodedExample, max_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and token types, int[n] each, of the query of a pair with the passage of another one, which is cut at
    `max_length` tokens."""
    (start, stop), (first, last) = own.spans[0], other.spans[0]
    after = own.input_ids[stop:]
    passage = other.input_ids[first:last][: max(1, max_length - start - len(after))]
    ids = np.concatenate([own.input_ids[:start], passage, after])
    return ids, token_types(len(ids), own.spans)


def pairs(
    tokenizer: Tokenizer, records: Sequence[Relevance], limits: TextLimits
) -> list[list[EncodedExample] | RowError]:
    """The pairs of each record at full length: the query with each relevant passage, then with each irrelevant one.

    An instruction is put before its text, separated by a space. Raises ModelError as `PairTemplate.of`.
    """
    template = PairTemplate.of(tokenizer)
    texts = [text_of(text) for record in records for text in _texts(record)]
    encoded = iter([ids.tolist() for ids in tokenizer.encode_batch(texts)])
    groups: list[list[EncodedExample] | RowError] = []
    for record in records:
        query, *passages = [next(encoded) for _ in _texts(record)]
        groups.append(_unusable(record, limits, query, passages) or _group(template, record, query, passages))
    return groups


def text_of(instructed: Instructed) -> str:
    """A text with its instruction before it, as the tokenizer gets it."""
    instruction, text = instructed
    return _PLAIN.before(instruction) + text


def _texts(record: Relevance) -> list[Instructed]:
    return [record.query, *record.positives, *record.negatives]


def _unusable(
    record: Relevance, limits: TextLimits, query: Sequence[int], passages: Sequence[Sequence[int]]
) -> RowError | None:
    if not query:
        return RowError("empty", "the query has no tokens")
    for number, passage in enumerate(passages, 1):
        if not passage:
            negative = number - len(record.positives)
            return RowError(
                "empty", f"{f'positive {number}' if negative < 1 else f'negative {negative}'} has no tokens"
            )
    return unscored(record, limits)


def _group(
    template: PairTemplate, record: Relevance, query: Sequence[int], passages: Sequence[Sequence[int]]
) -> list[EncodedExample]:
    scores = record.scores or [math.nan] * len(passages)
    group = []
    for position, (passage, score) in enumerate(zip(passages, scores, strict=True)):
        ids, spans = template.pair(query, passage)
        is_positive = position < len(record.positives)
        group.append(EncodedExample(ids, spans, position, is_positive, score=score))
    return group
