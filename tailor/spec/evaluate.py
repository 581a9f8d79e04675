"""`evaluate`: what is measured on the evaluation data."""

from __future__ import annotations

from pydantic import Field

from tailor.spec.base import Section
from tailor.spec.suite import Suite
from tailor.spec.tasks.retrieval import Searched


class Generation(Section):
    """Answers generated before and after training, compared with the reference answers."""

    limit: int = Field(100, ge=1)
    """Evaluation conversations to answer, from the start."""

    max_new_tokens: int = Field(64, ge=1)
    """Longest answer, in tokens."""

    batch_size: int = Field(16, ge=1)
    """Answers generated at once."""

    samples: int = Field(5, ge=0)
    """Answers shown at the end."""


class Evaluate(Section):
    """Loss, perplexity and token accuracy on the evaluation data; generated answers and retrieval if asked for."""

    every: int | None = Field(None, ge=1)
    """Steps between evaluations. Default: only at the end. Needs `data.evaluation`, `data.holdout` or `evaluate.retrieval`."""

    generation: Generation | None = None
    """Exact match of generated answers, before and after training."""

    retrieval: Searched | None = None
    """A small collection that is searched before training and at every evaluation, for methods that train embeddings."""

    final: Suite | None = None
    """What the finished run is evaluated by, beside its base; the keys are those of an evaluation file."""
