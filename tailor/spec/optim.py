"""`optim`: the optimizer, its learning rate and the schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tailor.spec.base import Section

Beta = Annotated[float, Field(ge=0, lt=1)]


def _betas(optimizer: str | None) -> tuple[float, float]:
    return (0.9, 0.99) if optimizer == "lion" else (0.9, 0.999)


class Optim(Section):
    """The optimizer, its learning rate and the schedule."""

    optimizer: Literal[
        "adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "lion", "sgd"
    ] = "adamw"
    """The optimizer. The `_8bit` and `paged_` variants and `lion` are those of bitsandbytes: 8-bit variants need less
    memory (the state of embeddings stays in 32 bits), paged ones move their state to host memory when the GPU is full. Without a GPU, paging has no effect.
    """

    learning_rate: float = Field(gt=0)
    """Peak learning rate. Typical: 1e-4 to 3e-4 for LoRA, 5e-6 to 5e-5 for full fine-tuning."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up: `cosine` or `linear` decay to 0, or `constant`."""

    warmup_ratio: float | None = Field(None, ge=0, lt=1)
    """Warm-up as a share of all steps, rounded up, for example 0.03. Default: no warm-up. Not together with `warmup_steps`."""

    warmup_steps: int | None = Field(None, ge=0)
    """Warm-up in steps. Default: no warm-up. Not together with `warmup_ratio`."""

    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay. Applied to matrices only, not to norms and biases of any shape, nor to `A_log` and `D` of
    state-space layers.
    """

    betas: tuple[Beta, Beta] = Field(default_factory=lambda values: _betas(values.get("optimizer")))
    """Decay rates of the running means of gradients and squared gradients (adamw, lion). Default: 0.9 and 0.999, for lion
    0.9 and 0.99.
    """

    eps: float = Field(1e-8, gt=0)
    """Term added to the denominator for numerical stability (adamw)."""

    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum (sgd)."""

    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradient clipping: gradients with a larger L2 norm are scaled down to it. `null` turns clipping off."""
