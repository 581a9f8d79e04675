"""What a model forgot by its training: the perplexity of general texts."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tailor.spec.tasks.base import EvaluationTask
from tailor.spec.tasks.rows import Texts


class Forgetting(EvaluationTask):
    """Loss and perplexity of general texts, to compare with the base: training on new data may make a model forget others."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.forgetting:ForgettingEvaluator"
    figures: ClassVar[tuple[str, ...]] = ("general_loss", "general_perplexity")
    fields: ClassVar[tuple[str, ...] | None] = ("text",)

    name: Literal["forgetting"]
    """Metrics: `general_loss` and `general_perplexity`, averaged over tokens. `compare: base` shows how they changed."""

    data: Texts | None = None
    """Rows with the field `text`, which are read without a chat template. Default: 40 short texts that come with tailor
    (prose, dialogue, code and instructions, most of them in English).
    """

    max_length: int = Field(512, ge=8)
    """Longest text, in tokens. The rest is cut."""
