"""Estimate how long a run takes on a device: arithmetic per token, at the utilization that such runs reach.

docs/scaling.md compares the estimate with published figures.
"""

from __future__ import annotations

from dataclasses import dataclass

from tailor.plan.devices import Device
from tailor.plan.facts import DataFacts, ModelFacts
from tailor.plan.plan import Plan

UNCERTAINTY = {"cuda": 1.6, "cpu": 2.5}
"""The true duration is within this factor of the estimate for the published figures in docs/scaling.md."""
LAYER_SECONDS = {"cuda": 1e-3, "cpu": 0.0}
"""Minimum of a layer's forward and backward pass: the time to launch its kernels, which limits small models."""


@dataclass(frozen=True)
class Duration:
    """Seconds of all steps, without preparation, evaluation and checkpoints."""

    seconds: float
    low: float
    high: float
    tokens: int
    """Tokens of all steps."""
    tokens_per_second: float
    """Of all workers together."""


def duration(plan: Plan, facts: ModelFacts, data: DataFacts, device: Device) -> Duration:
    """The duration of the plan's steps on its workers, each of which is one `device`."""
    kind = device.hardware.device
    steps = max(0, plan.steps - data.first_step)
    tokens = plan.run_tokens or round(data.tokens * steps / data.steps_per_epoch)
    work = flops_per_token(plan, facts, data) * tokens / plan.workers
    computing = work / (device.utilization * device.flops_of(plan.precision))
    launching = steps * plan.accumulation * facts.layers * LAYER_SECONDS[kind]
    moved = _bytes_per_step(plan, facts) * steps / device.bandwidth
    seconds = max(computing, launching, moved if plan.strategy.shards_optimizer else 0.0)
    if not plan.strategy.shards_optimizer:
        seconds += moved
    factor = UNCERTAINTY[kind]
    return Duration(seconds, seconds / factor, seconds * factor, tokens, tokens / max(seconds, 1e-9))


def flops_per_token(plan: Plan, facts: ModelFacts, data: DataFacts) -> float:
    """Floating-point operations per token of a step, with those of activation checkpointing.

    2 per weight in the forward pass, 2 for the gradient of the activations, and 2 for that of each trained weight (Kaplan et
    al. 2020, arXiv 2001.08361); attention as in PaLM (arXiv 2204.02311, appendix B), over half a document.
    """
    context = min(plan.row_length or data.longest_text, data.tokens / max(1, data.examples)) / 2
    attention = 4.0 * facts.layers * facts.heads * facts.head_dim * context  # one forward pass
    forward = 2.0 * facts.active_parameters + attention
    trains_all = plan.model.adapter is None and plan.model.beacon is None
    weight_gradients = 2.0 * facts.active_parameters if trains_all else 4.0 * plan.trained_parameters
    total = 2 * forward + attention + weight_gradients
    if plan.activation_checkpointing:
        total += forward / plan.activation_checkpointing
    passes_without_gradient = (plan.reference in ("adapter_off", "copy")) + (
        plan.method.embedding is not None and plan.method.embedding.engine == "gradcache"
    )
    return total + passes_without_gradient * forward


def _bytes_per_step(plan: Plan, facts: ModelFacts) -> float:
    """Bytes that a worker exchanges in a step: weights for each micro-batch if they are sharded, and the gradients."""
    if plan.workers == 1:
        return 0.0
    gradients = 8.0 * plan.trained_parameters  # reduce-scatter and all-gather of float32
    if not plan.strategy.shards_weights:
        return gradients
    gathered = 2 * (facts.linear_parameters + facts.embedding_parameters)
    return gradients + 2.0 * gathered * plan.accumulation
