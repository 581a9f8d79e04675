"""The inputs of a task for one model, and the results of its batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tailor.encode.prompts import answer_text
from tailor.encode.replies.reading import read
from tailor.encode.replies.reply import Reply
from tailor.encode.tokenizer import Tokenizer
from tailor.evaluate.batches import SAMPLE, EvaluationBatch, Result, generating, scoring
from tailor.evaluate.question import Selection
from tailor.evaluate.rows import Question, Scored

Location = Mapping[str, Any]
"""Where a row comes from, such as `source`, `file` and `row` (from 1)."""


class Collected:
    """The results of one model's batches for one task."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[int, Any]] = {}

    def add(self, batch: EvaluationBatch, result: Result) -> None:
        """Add the result of a batch. Batches come in the order of `TaskInputs.batches`."""
        assert isinstance(result, list)
        self._parts.setdefault(batch.part, {}).update(zip(batch.items, result, strict=True))

    def of(self, part: str) -> dict[int, Any]:
        """The results of a part, by item number."""
        return self._parts.get(part, {})

    def grouped(self, part: str, sizes: Sequence[int]) -> list[list[Any]]:
        """The results of each row's items. Items are numbered consecutively over all rows; sizes: number of items per row."""
        values, groups, at = self.of(part), [], 0
        for size in sizes:
            groups.append([values[number] for number in range(at, at + size)])
            at += size
        return groups

    def answers(self, part: str, count: int, tokenizer: Tokenizer) -> list[str]:
        """The generated answers as they are, of several samples the first. An item with an empty prompt has no result, and its
        answer is empty."""
        ids = self.of(part)
        return [answer_text(tokenizer, ids.get(at, [])) for at in range(count)]

    def replies(self, part: str, questions: Sequence[Question], tokenizer: Tokenizer) -> list[list[Reply]]:
        """What the sampled answers to each question say; without `decoding.samples` it is one."""
        ids = self.of(part)
        number = 1 + max(ids, default=0) // SAMPLE
        return [
            [read(tokenizer, one.prompt, ids.get(at + sample * SAMPLE, [])) for sample in range(number)]
            for at, one in enumerate(questions)
        ]


def answer_fields(samples: Sequence[Reply]) -> dict[str, Any]:
    """The fields of a row of results: `answer`, with `reasoning_content` if it has some, and `samples` if there are several."""
    first = samples[0]
    return {
        **({"reasoning_content": first.reasoning} if first.reasoning else {}),
        "answer": first.text,
        **({"samples": [one.text for one in samples]} if len(samples) > 1 else {}),
    }


@dataclass(frozen=True, eq=False)
class TaskInputs:
    """What one model computes for a task. When two tasks return the same object, it is computed once for both."""

    rows: Sequence[Any]
    tokenizer: Tokenizer
    batches: Callable[[str, int], list[EvaluationBatch]]
    """(label of the model, `decoding.batch_size`) -> the batches. Must be deterministic: an interrupted evaluation resumes by
    their index."""
    locations: Sequence[Location] = ()
    """The location of each row. All compared models must have the same ones."""
    lengths: Sequence[tuple[Location, int]] = ()
    """(location, tokens) of each sequence that must fit into the model's positions."""
    exceeding: Sequence[int] = ()
    """Lengths that may exceed the model's positions, if its position encoding can extrapolate (RoPE can)."""
    used: int = 0
    """Number of evaluation rows that are used."""
    cut: int = 0
    """Number of evaluation rows that are not asked because `on_long` cut them."""
    without_question: int = 0
    """Number of evaluation rows that are not asked because they have no question."""
    short: int = 0
    """Number of rows that are not evaluated because they are too short."""
    collect: Callable[[], Collected] = field(default=Collected)
    """Factory of the object that collects the results."""


def question_inputs(
    part: str,
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    *,
    selection: Selection | None = None,
) -> TaskInputs:
    """Inputs that generate an answer to each question, as `decoding` says. `Collected.replies(part, …)` returns them.

    selection: of the evaluation rows; None for rows of the task's own.
    """
    selection = selection or Selection()
    return TaskInputs(
        questions,
        tokenizer,
        lambda model, size: generating(model, part, [one.prompt for one in questions], size),
        locations=[one.location for one in questions],
        lengths=[(one.location, len(one.prompt) + 1) for one in questions],
        used=selection.rows,
        cut=selection.cut,
        without_question=selection.without_question,
    )


class ScoredRow(Protocol):
    """A row of which some tokens are scored, in one sequence or several."""

    @property
    def location(self) -> Location: ...

    @property
    def sequences(self) -> Sequence[Scored]: ...


def scored_inputs(part: str, rows: Sequence[ScoredRow], tokenizer: Tokenizer, *, used: int = 0) -> TaskInputs:
    """Inputs that score the sequences of each row. `Collected.grouped(part, …)` returns their likelihoods.

    used: number of evaluation rows among them.
    """
    sequences = [sequence for row in rows for sequence in row.sequences]
    return TaskInputs(
        rows,
        tokenizer,
        lambda model, size: scoring(model, part, sequences, size),
        locations=[row.location for row in rows],
        lengths=[(row.location, len(sequence.ids)) for row in rows for sequence in row.sequences],
        used=used,
    )
