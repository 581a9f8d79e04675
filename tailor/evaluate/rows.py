"""Evaluation rows as a model sees them: prompts to answer, and sequences whose tokens are scored."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tailor.data.token_store import Split
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import DataError
from tailor.evaluate.generation import before_stop
from tailor.evaluate.in_training.exact_match import Questions as LastQuestion
from tailor.evaluate.in_training.exact_match import stops
from tailor.evaluate.question import has_question

Ids = list[int]
Spans = list[tuple[int, int]]


@dataclass(frozen=True)
class Scored:
    """A sequence of token ids, and the half-open spans that are scored."""

    ids: Ids
    spans: Spans


@dataclass(frozen=True)
class Question:
    """A prompt to answer, and the reference answer."""

    location: dict[str, Any]
    """`source` and `row` (from 1)."""
    prompt: Ids
    question: str
    rendered: str
    reference: str | None = None


def questions(
    split: Split,
    limit: int | None,
    tokenizer: Tokenizer,
    template: dict[str, Any] | None,
    *,
    chunked: bool,
) -> tuple[list[Question], int]:
    """The questions among the first `limit` rows, and the number of rows that were left out. The last answer is the reference.

    chunked: `on_long: chunk` may have split a row, and its question, into several examples; such rows are left out.
    DataError when no row has a question, as in plain text.
    """
    ends, shown = stops(tokenizer, template), LastQuestion(tokenizer, template)
    found, left_out = [], 0
    for (source, row), indexes in numbered_rows(split, limit):
        if chunked and len(indexes) > 1:
            left_out += 1
            continue
        for index in indexes:
            example = split.example(index)
            if not has_question(example, tokenizer):
                continue
            start, stop = (int(bound) for bound in example.spans[-1])
            ids = example.input_ids.tolist()
            reference = tokenizer.decode(before_stop(ids[start:stop], ends), skip_special_tokens=True)
            rendered = tokenizer.decode(ids[:start])
            location = {"source": source, "row": row}
            found.append(
                Question(location, ids[:start], shown.last(rendered), rendered, reference=reference.strip())
            )
    if not found:
        raise no_question()
    return found, left_out


def any_question(split: Split, limit: int | None, tokenizer: Tokenizer, *, chunked: bool) -> bool:
    """Whether `questions` would return any question."""
    kept = (indexes for _, indexes in numbered_rows(split, limit) if not chunked or len(indexes) == 1)
    return any(has_question(split.example(index), tokenizer) for indexes in kept for index in indexes)


def no_question(key: str = "") -> DataError:
    """The error for evaluation rows without a question. key: prefix of the message."""
    return DataError(
        f"{key}no evaluation row has a question before its answer, so there is nothing to generate",
        hint="evaluate on conversations or prompt/response rows with train_on: assistant, or use only the task perplexity",
    )


def numbered_rows(split: Split, limit: int | None) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """((source, row), indexes of its examples) of the first `limit` rows, in order."""
    numbered = itertools.groupby(
        range(len(split)), key=lambda at: (int(split.source[at]), int(split.row[at]))
    )
    for location, indexes in itertools.islice(numbered, limit):
        yield location, list(indexes)
