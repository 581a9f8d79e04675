"""Forecast of a worker's peak memory, before anything is loaded.

Bytes per token of one layer and of the logits were calibrated on decoders of the Llama kind
(attention over documents, tiled loss); see docs/design/architecture.md. It is a forecast, not a promise:
the run logs the measured peak beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tailor.plan.facts import ModelFacts
from tailor.spec.model import Model

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTIZED_BYTES = {"nf4": 0.516, "fp4": 0.516, "int8": 1.03}
OPTIMIZER_BYTES = {
    "adamw": 8,
    "paged_adamw": 8,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "adafactor": 1,
    "lion": 4,
    "sgd": 4,
}
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "lm_head", "embed_out")
LOSS_TILE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Memory:
    """Bytes on one worker at its peak, by what takes them."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    reference: int = 0
    """A frozen copy of the model."""

    @property
    def peak(self) -> int:
        kept = self.weights + self.gradients + self.optimizer + self.reference
        return kept + self.activations + self.logits


def forecast(
    facts: ModelFacts,
    model: Model,
    *,
    optimizer: str,
    frozen_dtype: str,
    mixed_precision: bool,
    activation_checkpointing: bool,
    tokens: int,
    reference_copy: bool = False,
) -> Memory:
    """Peak of one worker whose micro-batch has `tokens` tokens."""
    trained = trained_parameters(facts, model)
    frozen = facts.linear_parameters + facts.embedding_parameters if model.adapter else 0
    weights = 4.0 * trained
    if frozen:
        per_linear = QUANTIZED_BYTES[model.quantize.type] if model.quantize else BYTES[frozen_dtype]
        plain = facts.linear_parameters - facts.quantized_parameters + facts.embedding_parameters
        weights += per_linear * facts.quantized_parameters + BYTES[frozen_dtype] * plain
        if model.quantize:  # the largest matrix is dequantised for each product
            weights += BYTES[frozen_dtype] * facts.hidden * facts.intermediate
    width = 1.0 if mixed_precision else 2.0
    layer = width * (22.7 * facts.hidden + 11.9 * facts.intermediate + 4.5 * facts.kv)
    if activation_checkpointing:
        activations = tokens * (width * 2 * facts.hidden * facts.layers + layer)
    else:
        kept = width * (16 * facts.hidden + 8 * facts.intermediate + 4.1 * facts.kv)
        activations = tokens * facts.layers * kept
    logits = min(12.0 * facts.vocabulary * tokens, 3.0 * LOSS_TILE_BYTES)
    return Memory(
        weights=int(weights),
        gradients=4 * trained,
        optimizer=OPTIMIZER_BYTES[optimizer] * trained,
        activations=int(activations),
        logits=int(logits),
        reference=4 * trained if reference_copy else 0,
    )


def trained_parameters(facts: ModelFacts, model: Model) -> int:
    """Estimate of the number of trained weights."""
    if model.adapter is None:
        return facts.linear_parameters + facts.embedding_parameters
    whole = [name.rsplit(".", 1)[-1] for name in model.adapter.modules_to_save]
    tables = sum(name in EMBEDDINGS for name in whole)
    return facts.lora_parameters(model.adapter.rank) + tables * facts.vocabulary * facts.hidden
