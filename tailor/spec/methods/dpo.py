"""`method` with `name: dpo`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tailor.spec.data import PAIRS
from tailor.spec.methods.base import AnswerLimits, MethodSection, ReferenceSource

REFERENCE_FREE = ("simpo", "orpo", "cpo")
"""Losses without a reference model."""

SMOOTHED = ("sigmoid", "robust", "simpo", "cpo")
"""Losses that use `label_smoothing`."""


class Dpo(MethodSection):
    """Direct preference optimization: of two answers to a prompt, the chosen one becomes likelier than the rejected one.

    The loss is the mean over the pairs of the global batch.
    """

    implementation = "tailor.methods.dpo:build"
    rules = "tailor.spec.rules.methods.dpo"
    reads = (PAIRS,)
    compares_answers = True
    documents_per_pass = "gives several answers to one"

    name: Literal["dpo"]
    """The method."""

    loss: Literal["sigmoid", "robust", "ipo", "hinge", "simpo", "orpo", "cpo"] = "sigmoid"
    """The loss of a pair. simpo, orpo and cpo need no reference model."""

    beta: float = Field(0.1, gt=0)
    """How much a difference of log-probabilities counts: larger keeps the model closer to the reference.

    For ipo it is the paper's tau, for orpo the weight of the odds-ratio term (lambda).
    """

    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of the pairs whose labels are taken to be swapped. For sigmoid (conservative DPO), robust, simpo and cpo."""

    gamma: float = Field(0.5, ge=0)
    """Margin by which the chosen answer's reward must be larger, for simpo."""

    sft_weight: float | None = Field(None, ge=0)
    """Weight of the chosen answer's own loss, its mean over the answer's tokens. Default 1 for orpo and cpo, else 0."""

    reference: Literal["auto", "adapter_off", "copy", "precomputed"] = "auto"
    """Where the reference log-probabilities come from.

    adapter_off: the base under the adapter. copy: a frozen copy of the model. precomputed: computed once before
    training and kept beside the tokens. auto: adapter_off with an adapter, else copy, or precomputed where the
    workers share the weights out.
    """

    max_prompt_length: int | None = Field(None, ge=1)
    """Longest prompt, in tokens. With `data.on_long: truncate` the end of a longer one is kept."""

    max_completion_length: int | None = Field(None, ge=1)
    """Longest answer, in tokens. With `data.on_long: truncate` the start of a longer one is kept."""

    @property
    def answer_limits(self) -> AnswerLimits:
        return AnswerLimits(self.max_prompt_length, self.max_completion_length)

    @property
    def reference_source(self) -> ReferenceSource | None:
        return None if self.loss in REFERENCE_FREE else self.reference
