"""Tasks with question sets of their own."""

from __future__ import annotations

from typing import ClassVar, Literal

from tailor.spec.tasks.base import EvaluationTask
from tailor.spec.tasks.rows import Questions


class MultipleChoice(EvaluationTask):
    """Whether the likeliest of the given answers is the right one, by log-likelihood after the question."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.multiple_choice:MultipleChoiceEvaluator"
    figures: ClassVar[tuple[str, ...]] = ("accuracy", "accuracy_norm")
    fields: ClassVar[tuple[str, ...] | None] = ("question", "choices", "answer")

    name: Literal["multiple_choice"]
    """Gives `accuracy`, and `accuracy_norm` with log-likelihoods divided by the answers' lengths in characters."""

    data: Questions
    """Rows with `question`, `choices` (a list of texts) and `answer`: an index from 0, a letter, or the text."""


class Facts(EvaluationTask):
    """A curated set of questions, and the facts that each answer must state."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.facts:FactsEvaluator"
    figures: ClassVar[tuple[str, ...]] = ("facts",)
    generates: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...] | None] = ("question", "facts")

    name: Literal["facts"]
    """Gives `facts`: the mean share of a question's facts that its answer states."""

    data: Questions
    """Rows with `question` and `facts`: a list of texts, or of lists of texts of which one is enough."""
