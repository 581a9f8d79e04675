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
    """Direct preference optimization (DPO, arXiv 2305.18290) and related losses.

    Of two answers to a prompt, the chosen one becomes more likely than the rejected one. The loss is the mean over
    the pairs of the global batch.
    """

    implementation = "tailor.methods.dpo:build"
    metrics = ("reward_accuracy", "reward_margin")
    rules = "tailor.spec.rules.methods.dpo"
    reads = (PAIRS,)
    compares_answers = True
    documents_per_pass = "puts several answers into one forward pass"
    shares_prompts = True

    name: Literal["dpo"]
    """The method."""

    loss: Literal["sigmoid", "robust", "ipo", "hinge", "simpo", "orpo", "cpo"] = "sigmoid"
    """Loss of a pair. `sigmoid` is the original DPO loss; `robust` and `sigmoid` with `label_smoothing` are for noisy
    labels; `ipo` and `hinge` are alternatives with a reference model; `simpo`, `orpo` and `cpo` need no reference
    model.
    """

    beta: float = Field(0.1, gt=0)
    """Strength of the implicit KL penalty: larger values keep the model closer to the reference model. Typical: 0.05
    to 0.5. For ipo it is the paper's tau, for orpo the weight of the odds-ratio term (lambda).
    """

    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Assumed share of pairs whose chosen and rejected answers are swapped. For sigmoid (conservative DPO), robust,
    simpo and cpo. Raise it for noisy labels.
    """

    gamma: float = Field(0.5, ge=0)
    """Target reward margin between the chosen and the rejected answer, for simpo."""

    sft_weight: float | None = Field(None, ge=0)
    """Weight of an added SFT loss: the negative log-likelihood of the chosen answer, averaged over its tokens.
    Default: 1 for orpo and cpo, else 0.
    """

    reference: Literal["auto", "adapter_off", "copy", "precomputed"] = "auto"
    """Source of the reference log-probabilities. `adapter_off`: the base model with the adapter turned off. `copy`: a
    frozen copy of the model, which needs memory for it. `precomputed`: computed once before training and stored
    beside the tokens. `auto`: adapter_off with an adapter; else copy, or precomputed if the strategy shards the
    weights.
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
    def reference_source(self) -> ReferenceSource | None:
        return None if self.loss in REFERENCE_FREE else self.reference
