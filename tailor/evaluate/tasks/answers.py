"""Base class of tasks that compare generated answers with reference answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from tailor.evaluate.figures import PerRow, mean
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.rows import Question
from tailor.evaluate.task_inputs import Collected, TaskInputs, answer_fields
from tailor.evaluate.tasks.base import Outcome, Row, TaskEvaluator
from tailor.layout import ANSWERS
from tailor.spec.suite import pass_counts
from tailor.spec.tasks.base import EvaluationTask

Scores = Mapping[str, float | None]
"""Figure name -> score of an answer; None leaves the answer out of the figure."""
S = TypeVar("S", bound=EvaluationTask)


@dataclass(frozen=True)
class Measured:
    """What a task finds in the answers of one model. rows: its scores of each row, for the file of rows."""

    figures: dict[str, PerRow]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    """Notes for the user, one line each."""
    data: Any = None
    """Anything that `TaskEvaluator.summary` needs."""


class AnswerEvaluator(TaskEvaluator[S]):
    """Compares each answer with its reference. A subclass implements `score`, or `measure` for figures that are no means.

    All tasks on the evaluation rows share the generated answers. A task with its own rows overrides `part`, `file` and
    `inputs`.
    """

    part: ClassVar[str] = "questions"
    file: ClassVar[str] = ANSWERS

    def score(self, answer: str, reference: str) -> Scores:
        """Figure name -> score of this answer, from 0 to 1; None leaves the answer out. The evaluation reports the mean.

        A subclass with a `measure` of its own needs none.
        """
        raise NotImplementedError

    def measure(self, questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> Measured:
        """The figures of all answers. questions: with their references; answers: the samples of each question."""
        return means(
            [
                [self.score(answer, str(question.reference)) for answer in samples]
                for question, samples in zip(questions, answers, strict=True)
            ],
            self.spec.binary,
        )

    def inputs(self, rows: ModelRows) -> TaskInputs:
        return rows.questions

    def judge(self, inputs: TaskInputs, collected: Collected) -> Outcome:
        replies = collected.replies(self.part, inputs.rows, inputs.tokenizer)
        measured = self.measure(inputs.rows, [[one.text for one in samples] for samples in replies])
        rows = [
            (
                {
                    **one.location,
                    "prompt": one.question,
                    "rendered": one.rendered,
                    "reference": one.reference,
                },
                {**answer_fields(samples), **own},
            )
            for one, samples, own in zip(inputs.rows, replies, measured.rows, strict=True)
        ]
        return Outcome(measured.figures, self.file, rows, data=measured.data, notes=measured.notes)


def means(scores: Sequence[Sequence[Scores]], binary: Sequence[str] = ()) -> Measured:
    """The mean of each figure over rows, where a row's score is the mean over its samples.

    scores: of each sample of each row; a figure that a sample does not have, or that is None, leaves the sample out, and
    a row without a sample is left out. binary: figures whose scores are 0 or 1, which also get pass@k. A figure
    without any score is not reported.
    """
    names = list(dict.fromkeys(name for samples in scores for one in samples for name in one))
    given = {
        name: [[value for one in samples if (value := one.get(name)) is not None] for samples in scores]
        for name in names
    }
    rows = {
        name: [sum(values) / len(values) if values else None for values in by_row]
        for name, by_row in given.items()
    }
    figures = {name: _mean(by_row) for name, by_row in rows.items() if any(one is not None for one in by_row)}
    for name in (name for name in binary if name in figures):
        for k in pass_counts(max(map(len, scores))):
            figures[f"{name}/pass@{k}"] = _mean(
                [
                    pass_at(k, len(values), round(sum(values))) if len(values) >= k else None
                    for values in given[name]
                ]
            )
    return Measured(figures, [{name: rows[name][at] for name in names} for at in range(len(scores))])


def pass_at(k: int, samples: int, right: int) -> float:
    """Unbiased estimate of the probability that one of k samples is right (Chen et al. 2021, arXiv 2107.03374)."""
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def _mean(values: Sequence[float | None]) -> PerRow:
    """The mean of the rows that have a value."""
    return mean([0.0 if one is None else one for one in values], [one is not None for one in values])
