"""Tasks with their own set of questions."""

from __future__ import annotations

from typing import ClassVar, Literal

from tailor.spec.tasks.base import EvaluationTask
from tailor.spec.tasks.rows import Questions


class MultipleChoice(EvaluationTask):
    """Share of questions for which the correct choice has the highest log-likelihood after the question."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.multiple_choice:MultipleChoiceEvaluator"
    figures: ClassVar[tuple[str, ...]] = ("accuracy", "accuracy_norm")
    fields: ClassVar[tuple[str, ...] | None] = ("question", "choices", "answer")

    name: Literal["multiple_choice"]
    """Metrics: `accuracy`, and `accuracy_norm` with each log-likelihood divided by the length of the choice in
    characters.
    """

    data: Questions
    """Rows with `question`, `choices` (a list of texts) and `answer`: an index from 0, a letter, or the text itself.
    """


class Facts(EvaluationTask):
    """A curated set of questions with the facts that each answer must state."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.facts:FactsEvaluator"
    figures: ClassVar[tuple[str, ...]] = ("facts",)
    generates: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...] | None] = ("question", "facts")

    name: Literal["facts"]
    """Metric: `facts`, the mean share of a question's facts that the answer states."""

    data: Questions
    """Rows with `question` and `facts`: a list of texts. An item may be a list of alternative texts, of which one is
    enough.
    """
