"""`optim`: the optimizer, its learning rate and the schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tailor.spec.base import Section

Beta = Annotated[float, Field(ge=0, lt=1)]
Schedule = Literal["cosine", "cosine_with_restarts", "linear", "wsd", "constant", "constant_with_warmup"]


def _betas(optimizer: str | None) -> tuple[float, float]:
    return (0.9, 0.99) if optimizer == "lion" else (0.9, 0.999)


def _momentum(optimizer: str | None) -> float:
    return 0.95 if optimizer == "muon" else 0.9


def _schedule(optimizer: str | None) -> Schedule:
    return "constant" if optimizer == "schedule_free" else "cosine"


class LearningRateRatios(Section):
    """Learning rates of groups of weights, as multiples of `learning_rate`. They follow its schedule."""

    lora_b: float = Field(1.0, gt=0)
    """Of the LoRA matrices B and of DoRA's magnitudes, as in LoRA+ (arXiv 2402.12354), which uses 16. Needs
    `model.adapter`.
    """

    embeddings: float = Field(1.0, gt=0)
    """Of the embeddings of tokens and positions, and of an output head that is tied to them."""

    head: float = Field(1.0, gt=0)
    """Of an output head with weights of its own."""


class Optim(Section):
    """The optimizer, its learning rate and the schedule."""

    optimizer: Literal[
        "adamw",
        "adamw_8bit",
        "paged_adamw",
        "paged_adamw_8bit",
        "adafactor",
        "lion",
        "muon",
        "schedule_free",
        "sgd",
    ] = "adamw"
    """The optimizer. The `_8bit` and `paged_` variants and `lion` are those of bitsandbytes: 8-bit variants need less
    memory (the state of embeddings stays in 32 bits), paged ones move their state to host memory when the GPU is full.
    Without a GPU, paging has no effect.

    `muon` (`torch.optim.Muon`) orthogonalizes the updates of the matrices of linear layers and scales them to those of
    AdamW, which trains the other weights. `schedule_free` (arXiv 2405.15682, package `schedulefree`) averages weights
    instead of decaying the learning rate.
    """

    learning_rate: float = Field(gt=0)
    """Peak learning rate. Typical: 1e-4 to 3e-4 for LoRA, 5e-6 to 5e-5 for full fine-tuning."""

    schedule: Schedule = Field(default_factory=lambda values: _schedule(values.get("optimizer")))
    """Learning rate after the warm-up. Default: `cosine`, for schedule_free `constant`.

    `cosine` and `linear` decay to `min_learning_rate`, `cosine_with_restarts` does so `cycles` times. `wsd` (warm-up,
    stable, decay) keeps the peak until the last `decay_ratio` of the steps. `constant_with_warmup` is `constant` that
    needs `warmup_ratio` or `warmup_steps`.
    """

    min_learning_rate: float = Field(0.0, ge=0)
    """Learning rate at the end of the decay. Not for constant schedules."""

    cycles: int = Field(2, ge=2)
    """Number of decays of `cosine_with_restarts`."""

    decay_ratio: float | None = Field(None, gt=0, le=1)
    """Decay of `wsd` as a share of all steps, rounded up. Default: 0.1. Not together with `decay_steps`."""

    decay_steps: int | None = Field(None, ge=1)
    """Decay of `wsd` in steps. Not together with `decay_ratio`."""

    decay: Literal["1-sqrt", "linear", "cosine"] = "1-sqrt"
    """Shape of the decay of `wsd`, over its progress from 0 to 1: `1-sqrt` (arXiv 2405.18392), `linear` or `cosine`."""

    learning_rate_ratios: LearningRateRatios = LearningRateRatios()
    """Learning rates of groups of weights, as multiples of `learning_rate`. They follow its schedule."""

    warmup_ratio: float | None = Field(None, ge=0, lt=1)
    """Warm-up as a share of all steps, rounded up, for example 0.03. Default: no warm-up. Not together with `warmup_steps`."""

    warmup_steps: int | None = Field(None, ge=0)
    """Warm-up in steps. Default: no warm-up. Not together with `warmup_ratio`."""

    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay. Applied to matrices only, not to norms and biases of any shape, nor to `A_log` and `D` of
    state-space layers.
    """

    betas: tuple[Beta, Beta] = Field(default_factory=lambda values: _betas(values.get("optimizer")))
    """Decay rates of the running means of gradients and squared gradients (adamw, lion, muon's AdamW). For
    schedule_free, the first one interpolates the weights. Default: 0.9 and 0.999, for lion 0.9 and 0.99.
    """

    eps: float = Field(1e-8, gt=0)
    """Term added to the denominator for numerical stability (adamw, muon's AdamW, schedule_free)."""

    momentum: float = Field(default_factory=lambda values: _momentum(values.get("optimizer")), ge=0, lt=1)
    """Momentum (sgd, muon). Default: 0.9, for muon 0.95."""

    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradient clipping: gradients with a larger L2 norm are scaled down to it. `null` turns clipping off."""
