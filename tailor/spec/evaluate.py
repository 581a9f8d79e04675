"""`evaluate`: what is measured on the evaluation data."""

from __future__ import annotations

from pydantic import Field

from tailor.spec.base import Section
from tailor.spec.suite import Suite
from tailor.spec.tasks.retrieval import Searched


class Generation(Section):
    """Exact match of generated answers with the reference answers, before and after training."""

    limit: int = Field(100, ge=1)
    """Number of evaluation conversations to answer, taken from the start. Generation is slow: keep it small."""

    max_new_tokens: int = Field(64, ge=1)
    """Longest generated answer, in tokens. Longer answers are cut."""

    batch_size: int | None = Field(None, ge=1)
    """Answers generated at once. Lower it if generation runs out of GPU memory. Default: up to 64 that have at most
    32,768 tokens together, prompts and answers.
    """

    samples: int = Field(5, ge=0)
    """Generated answers that are printed at the end of the run."""


class Evaluate(Section):
    """Loss, perplexity and token accuracy on the evaluation data; generated answers and retrieval if configured."""

    every: int | None = Field(None, ge=1)
    """Steps between evaluations. Default: only after the last step. Needs `data.evaluation`, `data.holdout` or
    `evaluate.retrieval`.
    """

    generation: Generation | None = None
    """Measure the exact match of generated answers before and after training. Default: off."""

    retrieval: Searched | None = None
    """A small retrieval collection that is evaluated before training and at every evaluation. Only for methods that
    train embeddings. Default: off.
    """

    final: Suite | None = None
    """Evaluation of the finished run, compared with its base model. It has the same keys as an evaluation file.
    Default: off.
    """
