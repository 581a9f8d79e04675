"""Instructions whose fulfillment a program can check."""

from __future__ import annotations

from typing import ClassVar, Literal

from tailor.spec.tasks.base import EvaluationTask
from tailor.spec.tasks.rows import Questions


class Instructions(EvaluationTask):
    """Whether answers follow instructions that a program can check, as in IFEval (Zhou et al. 2023, arXiv 2311.07911)."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.instructions:InstructionsEvaluator"
    figures: ClassVar[tuple[str, ...]] = ("instructions_strict", "instructions_followed")
    binary: ClassVar[tuple[str, ...]] = ("instructions_strict",)
    generates: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...] | None] = ("question", "checks")

    name: Literal["instructions"]
    """Metrics: `instructions_strict`, the share of answers that pass all of their checks, and `instructions_followed`, the mean
    share of checks passed.
    """

    data: Questions
    """Rows with `question` and `checks`: a list of mappings with one check each, such as `{"words": {"max": 50}}`. The checks
    are `words`, `paragraphs`, `lines`, `bullets` and `characters` with `min`, `max` or both; `contains` and `excludes` with a
    list of texts; `starts_with` and `ends_with` with a text; `case` with `upper` or `lower`; and `json` with true.
    """
