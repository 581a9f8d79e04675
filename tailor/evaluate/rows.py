"""Evaluation rows as a model sees them: prompts to answer, and sequences whose tokens are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tailor.data.split import Split
from tailor.encode.replies.reading import read
from tailor.encode.tokenizer import Tokenizer
from tailor.evaluate.generation import before_stop
from tailor.evaluate.in_training.exact_match import Questions as LastQuestion
from tailor.evaluate.in_training.exact_match import stops
from tailor.evaluate.question import Selection, no_question, select

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
    """`source`, `file` and `row` (from 1)."""
    prompt: Ids
    question: str
    rendered: str
    reference: str | None = None


@dataclass(frozen=True)
class Questions:
    """The questions of evaluation rows, and which rows were left out."""

    found: list[Question]
    selection: Selection


def questions(
    split: Split, limit: int | None, tokenizer: Tokenizer, template: dict[str, Any] | None
) -> Questions:
    """The questions among the first `limit` rows; the last answer of a row is the reference.

    DataError when no row has a question, as in plain text.
    """
    ends, shown = stops(tokenizer, template), LastQuestion(tokenizer, template)
    selection, found = select(split, tokenizer, rows=limit), []
    for row, index in selection.asked:
        example = split.example(index)
        start, stop = (int(bound) for bound in example.spans[-1])
        ids = example.input_ids.tolist()
        reference = read(tokenizer, ids[:start], before_stop(ids[start:stop], ends)).text
        rendered = tokenizer.decode(ids[:start])
        question = Question(row._asdict(), ids[:start], shown.last(rendered), rendered, reference)
        found.append(question)
    if not found:
        raise no_question(cut=selection.cut)
    return Questions(found, selection)
