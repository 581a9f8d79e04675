"""Accuracy of the part of a generated answer that answers the question: a number, a choice, or what a regex finds."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tailor.spec.tasks.base import EvaluationTask


class ExtractedAnswer(EvaluationTask):
    """Share of answers whose extracted part equals the extracted part of the reference.

    For answers that reason before they conclude, as for GSM8K. An answer without such a part counts as wrong.
    """

    implementation: ClassVar[str] = "tailor.evaluate.tasks.extracted_answer:ExtractedAnswerEvaluator"
    rules: ClassVar[str | None] = "tailor.spec.rules.tasks.extracted_answer"
    figures: ClassVar[tuple[str, ...]] = ("extracted_accuracy", "extracted_share")
    binary: ClassVar[tuple[str, ...]] = ("extracted_accuracy",)
    on_rows: ClassVar[bool] = True
    generates: ClassVar[bool] = True

    name: Literal["extracted_answer"]
    """Metrics: `extracted_accuracy`, and `extracted_share`, the share of answers that have such a part."""

    extract: Literal["number", "choice", "regex"] = "number"
    """What is extracted: the last `number` (a comma separates thousands), one of the `choices`, or the last match of
    `regex`. References are read the same way.
    """

    choices: list[Annotated[str, Field(min_length=1)]] = Field(["A", "B", "C", "D"], min_length=2)
    """The possible answers of `extract: choice`: letters, or words such as yes and no. Taken is the one at the start of the
    answer, else the one after the last "answer is", else the last one.
    """

    regex: str | None = Field(None, min_length=1)
    """Python regular expression of `extract: regex` with a group `(?P<answer>…)`."""
