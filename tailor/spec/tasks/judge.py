"""Comparison of answers by a language model behind an API."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tailor.spec.tasks.base import EvaluationTask


class Judge(EvaluationTask):
    """Pairwise comparison of the answers with those of each compared model, by a language model as the judge.

    The judge sees every pair in both orders. The questions and answers are sent to the server of `base_url`.
    """

    implementation: ClassVar[str] = "tailor.evaluate.tasks.judge:JudgeEvaluator"
    rules: ClassVar[str | None] = "tailor.spec.rules.tasks.judge"
    figures: ClassVar[tuple[str, ...]] = ("win_rate", "judge_agreement")
    on_rows: ClassVar[bool] = True
    generates: ClassVar[bool] = True
    needs_comparison: ClassVar[bool] = True

    name: Literal["judge"]
    """Metrics: `win_rate` (a win counts 1, a tie 1/2), and `judge_agreement`, the share of pairs with the same verdict in both
    orders.
    """

    judge_model: str = Field(min_length=1)
    """Name of the judge, as the server knows it."""

    base_url: str = Field(min_length=1)
    """URL of an OpenAI-compatible API, for example `http://localhost:8000/v1`."""

    key_variable: str | None = Field(None, min_length=1)
    """Environment variable with the API key, for example `OPENAI_API_KEY`. Default: no key is sent."""

    criteria: str = Field("Judge which answer is more correct, helpful and relevant.", min_length=1)
    """What the judge looks at."""

    reference: bool = False
    """Show the judge the reference answer, too."""

    temperature: float | None = Field(0.0, ge=0)
    """Sampling temperature of the judge. `null` sends none, for models that reject it."""

    timeout: float = Field(120.0, gt=0)
    """Seconds for one verdict, with all retries. A verdict that takes longer is left out and counted."""

    parallel: int = Field(8, ge=1, le=256)
    """Requests at the same time."""

    def needs_trust(self) -> str | None:
        return f"sends answers, and a key from the environment, to {self.base_url}"
