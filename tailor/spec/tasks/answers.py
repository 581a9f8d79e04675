"""Tasks that compare generated answers with the answers of the evaluation rows."""

from __future__ import annotations

from typing import ClassVar, Literal

from tailor.spec.tasks.base import EvaluationTask


class ExactMatch(EvaluationTask):
    """Whether a generated answer is the reference answer."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.exact_match:ExactMatchEvaluator"
    figures: ClassVar[tuple[str, ...]] = ("exact_match",)
    on_rows: ClassVar[bool] = True
    generates: ClassVar[bool] = True

    name: Literal["exact_match"]
    """Gives `exact_match`."""

    normalize: bool = False
    """Compare without case, punctuation, articles (a, an, the) and surplus spaces, as SQuAD does."""


class F1(EvaluationTask):
    """Overlap of words between answer and reference, as SQuAD counts it; CJK by characters."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.f1:F1Evaluator"
    figures: ClassVar[tuple[str, ...]] = ("f1",)
    on_rows: ClassVar[bool] = True
    generates: ClassVar[bool] = True

    name: Literal["f1"]
    """Gives `f1`."""


class Rouge(EvaluationTask):
    """ROUGE of the answer against the reference, F-measures by rouge-score; CJK by characters. Needs the extra `evaluate`."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.rouge:RougeEvaluator"
    figures: ClassVar[tuple[str, ...]] = ("rouge1", "rouge2", "rougeL")
    on_rows: ClassVar[bool] = True
    generates: ClassVar[bool] = True

    name: Literal["rouge"]
    """Gives `rouge1`, `rouge2` and `rougeL`."""

    stemmer: bool = False
    """Compare English words by their stems (Porter)."""
