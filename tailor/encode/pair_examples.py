"""Encodes queries with passages as pairs of texts for a cross-encoder, by the tokenizer's own template for pairs.

Of BERT this is `[CLS] query [SEP] passage [SEP]`. The first span of a pair is the passage, which truncation cuts. A second one,
the tokens after it, means that the tokens from the passage on have token type 1; without it, all tokens have type 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tailor.encode.embedding_examples import TextFormat, unscored
from tailor.encode.masks import EncodedExample, Span
from tailor.encode.records import Instructed, Relevance, RowError
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import ModelError
from tailor.spec.methods.base import TextLimits

_PLAIN = TextFormat("{instruction}", "", joined=True)


@dataclass(frozen=True)
class PairTemplate:
    """The token ids around the two texts of a pair, and whether the second text has token type 1."""

    before: list[int]
    between: list[int]
    after: list[int]
    typed: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> PairTemplate:
        """Read it from the tokenizer. ModelError when it has none, or another use of token types."""
        ids, types, owners = tokenizer.encode_pair("a", "b")
        first = [at for at, owner in enumerate(owners) if owner == 0]
        second = [at for at, owner in enumerate(owners) if owner == 1]
        if not first or not second or second[0] - first[-1] < 2:
            raise ModelError(
                f"the tokenizer of {tokenizer.name} puts no token between the two texts of a pair",
                hint="use an encoder whose tokenizer.json has a template for pairs, such as BERT's",
            )
        names = tokenizer.config.get("model_input_names")
        if isinstance(names, list) and "token_type_ids" not in names:
            types = [0] * len(types)
        start, typed = second[0], types[second[0]] == 1
        if types != [0] * start + [int(typed)] * (len(ids) - start):
            raise ModelError(
                f"the tokenizer of {tokenizer.name} gives the tokens of a pair the types {types}",
                hint="use an encoder whose second text has type 1, such as BERT, or no token types",
            )
        return cls(ids[: first[0]], ids[first[-1] + 1 : start], ids[second[-1] + 1 :], typed)

    def pair(self, query: Sequence[int], passage: Sequence[int]) -> tuple[np.ndarray, list[Span]]:
        """Token ids int32[T] and spans of a pair."""
        head = [*self.before, *query, *self.between]
        start, stop = len(head), len(head) + len(passage)
        ids = np.array([*head, *passage, *self.after], np.int32)
        return ids, [(start, stop), (stop, len(ids))] if self.typed else [(start, stop)]


def token_types(length: int, spans: np.ndarray) -> np.ndarray:
    """int64[length]: the token types of a pair."""
    types = np.zeros(length, np.int64)
    if len(spans) > 1:
        types[int(spans[0][0]) :] = 1
    return types


def pairs(
    tokenizer: Tokenizer, records: Sequence[Relevance], limits: TextLimits
) -> list[list[EncodedExample] | RowError]:
    """The pairs of each record at full length: the query with each relevant passage, then with each irrelevant one.

    An instruction is put before its text, separated by a space. Raises ModelError as `PairTemplate.of`.
    """
    template = PairTemplate.of(tokenizer)
    texts = [_PLAIN.before(instruction) + text for record in records for instruction, text in _texts(record)]
    encoded = iter(list(tokenizer.encode_batch(texts)))
    groups: list[list[EncodedExample] | RowError] = []
    for record in records:
        query, *passages = [next(encoded) for _ in _texts(record)]
        groups.append(_unusable(record, limits, query, passages) or _group(template, record, query, passages))
    return groups


def _texts(record: Relevance) -> list[Instructed]:
    return [record.query, *record.positives, *record.negatives]


def _unusable(
    record: Relevance, limits: TextLimits, query: Sequence[int], passages: Sequence[Sequence[int]]
) -> RowError | None:
    if not record.negatives:
        return RowError("missing_negatives", "the row has no negatives, and a reranker learns from both")
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
