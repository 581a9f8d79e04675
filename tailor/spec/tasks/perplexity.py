"""Perplexity of the evaluation rows."""

from __future__ import annotations

from typing import ClassVar, Literal

from tailor.spec.tasks.base import EvaluationTask


class Perplexity(EvaluationTask):
    """Loss, perplexity and token accuracy of the supervised tokens, averaged over tokens."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.perplexity:PerplexityEvaluator"
    figures: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "token_accuracy")
    on_rows: ClassVar[bool] = True

    name: Literal["perplexity"]
    """Metrics: `loss`, `perplexity` and `token_accuracy`."""
