"""`method` with `name: kto`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tailor.spec.data import RATED
from tailor.spec.methods.base import AnswerLimits, MethodSection, ReferenceSource


class Kto(MethodSection):
    """Kahneman-Tversky optimization: single answers that are labeled desirable or undesirable.

    The loss is the mean over the examples of the global batch.
    """

    implementation = "tailor.methods.kto:build"
    rules = "tailor.spec.rules.methods.kto"
    reads = (RATED,)
    compares_answers = True
    documents_per_pass = "gives several answers to one"
    min_examples = 2
    too_few_examples = "compares each prompt with another example's answer"
    can_precompute_reference = False

    name: Literal["kto"]
    """The method."""

    beta: float = Field(0.1, gt=0)
    """How much a difference of log-probabilities counts: larger keeps the model closer to the reference."""

    desirable_weight: float = Field(1.0, ge=0)
    """Weight of the desirable examples' losses."""

    undesirable_weight: float = Field(1.0, ge=0)
    """Weight of the undesirable examples' losses."""

    reference: Literal["auto", "adapter_off", "copy"] = "auto"
    """Where the reference log-probabilities come from.

    adapter_off: the base under the adapter. copy: a frozen copy of the model. auto: adapter_off with an adapter,
    else copy.
    """

    max_prompt_length: int | None = Field(None, ge=1)
    """Longest prompt, in tokens. With `data.on_long: truncate` the end of a longer one is kept."""

    max_completion_length: int | None = Field(None, ge=1)
    """Longest answer, in tokens. With `data.on_long: truncate` the start of a longer one is kept."""

    @property
    def answer_limits(self) -> AnswerLimits:
        return AnswerLimits(self.max_prompt_length, self.max_completion_length)

    @property
    def reference_source(self) -> ReferenceSource:
        return self.reference
