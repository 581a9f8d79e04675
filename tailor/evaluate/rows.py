"""The evaluation rows as a model sees them: prompts to answer, and sequences whose tokens are scored."""

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
    """Tokens, and the half-open spans of them that are scored."""

    ids: Ids
    spans: Spans


@dataclass(frozen=True)
class Question:
    """A prompt to answer, and what the answer is held against."""

    place: dict[str, Any]
    """Where the row stands: `source` and `row`, from 1."""
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
    """Of the first `limit` rows, those with something before their last answer, which is the reference.

    `chunked`: rows of several examples were cut (`on_long: chunk`), their questions too. They are left out, and their
    number is the second value. DataError when no row has a question: plain text asks nothing.
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
            place = {"source": source, "row": row}
            found.append(
                Question(place, ids[:start], shown.last(rendered), rendered, reference=reference.strip())
            )
    if not found:
        raise no_question()
    return found, left_out


def any_question(split: Split, limit: int | None, tokenizer: Tokenizer, *, chunked: bool) -> bool:
    """Whether `questions` would find any."""
    kept = (indexes for _, indexes in numbered_rows(split, limit) if not chunked or len(indexes) == 1)
    return any(has_question(split.example(index), tokenizer) for indexes in kept for index in indexes)


def no_question(key: str = "") -> DataError:
    return DataError(
        f"{key}no evaluation row has a question before its answer, so there is nothing to generate",
        hint="evaluate on conversations or prompt/response rows with train_on: assistant, or take perplexity alone",
    )


def numbered_rows(split: Split, limit: int | None) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """((source, row), its examples) in order."""
    numbered = itertools.groupby(
        range(len(split)), key=lambda at: (int(split.source[at]), int(split.row[at]))
    )
    for place, indexes in itertools.islice(numbered, limit):
        yield place, list(indexes)
