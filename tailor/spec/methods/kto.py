"""`method` with `name: kto`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tailor.spec.data import RATED
from tailor.spec.methods.base import AnswerLimits, MethodSection, ReferenceSource


class Kto(MethodSection):
    """Kahneman-Tversky optimization (KTO, arXiv 2402.01306).

    It learns from single answers that are labeled desirable or undesirable. The loss is the mean over the examples of
    the global batch.
    """

    implementation = "tailor.methods.kto:build"
    metrics = ("reward_accuracy", "reward_margin")
    rules = "tailor.spec.rules.methods.kto"
    reads = (RATED,)
    compares_answers = True
    documents_per_pass = "puts several answers into one forward pass"
    min_examples = 2
    too_few_examples = "estimates the KL divergence from prompts with the answers of other examples"
    can_precompute_reference = False

    name: Literal["kto"]
    """The method."""

    beta: float = Field(0.1, gt=0)
    """Strength of the implicit KL penalty: larger values keep the model closer to the reference model. Typical: 0.05
    to 0.5.
    """

    desirable_weight: float = Field(1.0, ge=0)
    """Weight of the loss of desirable examples. Raise it if there are far fewer of them than undesirable ones."""

    undesirable_weight: float = Field(1.0, ge=0)
    """Weight of the loss of undesirable examples. Raise it if there are far fewer of them than desirable ones."""

    reference: Literal["auto", "adapter_off", "copy"] = "auto"
    """Source of the reference log-probabilities. `adapter_off`: the base model with the adapter turned off. `copy`: a
    frozen copy of the model, which needs memory for it. `auto`: adapter_off with an adapter, else copy.
    """

    max_prompt_length: int | None = Field(None, ge=1)
    """Longest prompt, in tokens. With `data.on_long: truncate`, a longer prompt loses its start; otherwise the row
    counts as too long. Default: only `data.max_length` limits it.
    """

    max_completion_length: int | None = Field(None, ge=1)
    """Longest answer, in tokens. With `data.on_long: truncate`, a longer answer loses its end; otherwise the row
    counts as too long. Default: only `data.max_length` limits it.
    """

    @property
    def answer_limits(self) -> AnswerLimits:
        return AnswerLimits(self.max_prompt_length, self.max_completion_length)

    @property
    def reference_source(self) -> ReferenceSource:
        return self.reference

    @property
    def label_weights(self) -> tuple[float, float]:
        return self.desirable_weight, self.undesirable_weight
