"""The key `name: matches` of an evaluation's tasks. Read by `tailor validate`: no torch here."""

from typing import ClassVar, Literal

from tailor.spec.tasks.base import EvaluationTask
from tailor.spec.tasks.rows import Questions


class Matches(EvaluationTask):
    """Whether a generated answer matches the regular expression of its row."""

    implementation: ClassVar[str] = "matches_evaluator:MatchesEvaluator"
    figures: ClassVar[tuple[str, ...]] = ("matches",)
    generates: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...] | None] = ("question", "pattern")

    name: Literal["matches"]
    """Gives `matches`: the share of answers that match."""

    data: Questions
    """Rows with `question` and `pattern`."""

    whole: bool = False
    """Match the whole answer, not a part of it."""
