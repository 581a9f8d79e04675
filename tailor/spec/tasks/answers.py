"""Tasks that compare generated answers with the answers in the evaluation rows."""

from __future__ import annotations

from typing import ClassVar, Literal

from tailor.spec.tasks.base import EvaluationTask


class ExactMatch(EvaluationTask):
    """Share of generated answers that equal the reference answer."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.exact_match:ExactMatchEvaluator"
    figures: ClassVar[tuple[str, ...]] = ("exact_match",)
    binary: ClassVar[tuple[str, ...]] = ("exact_match",)
    on_rows: ClassVar[bool] = True
    generates: ClassVar[bool] = True

    name: Literal["exact_match"]
    """Metric: `exact_match`."""

    normalize: bool = False
    """Ignore case, punctuation, articles (a, an, the) and extra spaces, as SQuAD does."""


class F1(EvaluationTask):
    """Word overlap of answer and reference, as in SQuAD. Chinese, Japanese and Korean are compared by character."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.f1:F1Evaluator"
    figures: ClassVar[tuple[str, ...]] = ("f1",)
    on_rows: ClassVar[bool] = True
    generates: ClassVar[bool] = True

    name: Literal["f1"]
    """Metric: `f1`."""


class Rouge(EvaluationTask):
    """ROUGE F-measures of answer and reference, computed by rouge-score.

    Chinese, Japanese and Korean are compared by character. Needs the extra `evaluate`.
    """

    implementation: ClassVar[str] = "tailor.evaluate.tasks.rouge:RougeEvaluator"
    figures: ClassVar[tuple[str, ...]] = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    on_rows: ClassVar[bool] = True
    generates: ClassVar[bool] = True

    name: Literal["rouge"]
    """Metrics: `rouge1`, `rouge2`, `rougeL`, and `rougeLsum`, which compares sentence by sentence: one per line."""

    stemmer: bool = False
    """Compare English words by their stem (Porter stemmer)."""
