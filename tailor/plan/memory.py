"""Forecast of a worker's peak memory, before anything is loaded.

Bytes per token of one layer and of the logits were calibrated on decoders of the Llama kind
(attention over documents, tiled loss); see docs/design/architecture.md. It is a forecast, not a promise:
the run logs the measured peak beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tailor.plan import beacon
from tailor.plan.facts import ModelFacts
from tailor.plan.strategy_memory import Footprint, share
from tailor.spec.model import Model
from tailor.spec.strategy import Strategy

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
MLP_TILE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Memory:
    """Bytes on one worker at its peak, by what takes them."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    """What the loss needs beyond that."""
    reference: int = 0
    """A frozen copy of the model."""
    host: int = 0
    """In host memory: the layers' inputs, with `train.activation_offloading`. No part of the peak."""
    embeddings: int = 0
    """The embeddings of all texts of a batch, their gradients, and a tile of their similarities."""
    exchange: int = 0
    """What gradients and the strategy add to the largest moment of a step: buckets, and weights that are gathered."""

    @property
    def peak(self) -> int:
        kept = self.weights + self.gradients + self.optimizer + self.reference + self.embeddings
        return kept + self.activations + self.logits + self.exchange


def forecast(
    facts: ModelFacts,
    model: Model,
    *,
    optimizer: str,
    frozen_dtype: str,
    mixed_precision: bool,
    activation_checkpointing: int,
    rows: int,
    length: int,
    reference_copy: bool = False,
    strategy: Strategy | None = None,
    workers: int = 1,
    activation_offloading: bool = False,
    tiled_mlp: bool = False,
    sequence_parallel: int = 1,
    on_host: bool = False,
    zero_sizes: Mapping[str, int] | None = None,
) -> Memory:
    """Peak of one worker whose micro-batch has `rows` rows of `length` tokens, held with `sequence_parallel` - 1 others.

    strategy: ddp where none is given. on_host: the device is a CPU. zero_sizes: those of DeepSpeed's buckets.
    """
    tokens = rows * length
    trained = trained_parameters(facts, model)
    frozen = facts.linear_parameters + facts.embedding_parameters if model.adapter or model.beacon else 0
    weights = 4.0 * trained
    if frozen:
        per_linear = QUANTIZED_BYTES[model.quantize.type] if model.quantize else BYTES[frozen_dtype]
        plain = facts.linear_parameters - facts.quantized_parameters + facts.embedding_parameters
        weights += per_linear * facts.quantized_parameters + BYTES[frozen_dtype] * plain
        if model.quantize:  # the largest matrix is dequantized for each product
            weights += BYTES[frozen_dtype] * facts.hidden * facts.intermediate
    own = tokens / sequence_parallel
    width = 1.0 if mixed_precision else 2.0
    inputs, kept, layer = _activations(
        facts,
        own,
        mixed_precision=mixed_precision,
        every=activation_checkpointing,
        tiled=tiled_mlp,
        parts=sequence_parallel,
    )
    # The loss and the layer that is computed again are never there at one time.
    at_loss = (
        kept + min(12.0 * facts.vocabulary * own, 3.0 * LOSS_TILE_BYTES) + width * 2 * facts.hidden * own
    )
    activations = max(kept, layer)
    if model.beacon is not None:
        inputs, activations = (
            0.0,
            beacon.activations(
                facts,
                model.beacon,
                rows=rows,
                length=length,
                width=width,
                checkpointing=bool(activation_checkpointing),
            ),
        )
        at_loss = activations + min(12.0 * facts.vocabulary * tokens, 3.0 * LOSS_TILE_BYTES)
    tables = _trained_tables(facts, model)
    table = facts.vocabulary * facts.embedding
    # Autocast computes with copies of float32 weights, made in the forward pass and kept for the backward pass, but for
    # layers that are computed again; the head's is needed for the loss alone.
    copies = 2.0 * (trained - tables * table) if mixed_precision else 0.0
    again = -(-facts.layers // activation_checkpointing) if activation_checkpointing else 0
    footprint = Footprint(
        facts,
        weights=weights,
        optimizer=float(OPTIMIZER_BYTES[optimizer] * trained),
        trained=trained,
        tables=tables,
        low=2 if mixed_precision else 4,
        head=_head_gradient(facts, own, mixed_precision=mixed_precision) if tables else 0.0,
        copies_at_loss=copies + (2.0 * table if mixed_precision and tables else 0.0),
        copies=copies * (1 - again / facts.layers),
        on_host=on_host,
    )
    own_share = share(strategy, workers, footprint, zero_sizes or {})
    kept_inputs = 0.0 if activation_offloading else inputs
    without = max(at_loss, activations) + kept_inputs
    passes = max(at_loss + own_share.loss, activations + own_share.backward) + kept_inputs
    between = own_share.weights + own_share.gradients + own_share.optimizer
    most = max(passes, own_share.later, own_share.start - between)
    return Memory(
        weights=int(own_share.weights),
        gradients=int(own_share.gradients),
        optimizer=int(own_share.optimizer),
        activations=int(activations + kept_inputs),
        logits=int(max(0.0, at_loss - activations)),
        reference=4 * trained if reference_copy else 0,
        host=int(inputs) if activation_offloading else 0,
        exchange=int(most - without),
    )


def _head_gradient(facts: ModelFacts, tokens: float, *, mixed_precision: bool) -> float:
    """Bytes of a trained head's gradient while the loss is taken: the sum in float32, and a tile's product beside it."""
    table = float(facts.vocabulary * facts.embedding)
    one_tile = 4 * facts.vocabulary * tokens <= LOSS_TILE_BYTES
    product = 2 if mixed_precision else 0 if one_tile else 4
    return (4 + product) * table


def _activations(
    facts: ModelFacts, tokens: float, *, mixed_precision: bool, every: int, tiled: bool, parts: int
) -> tuple[float, float, float]:
    """Bytes for a worker's `tokens` tokens: of the layers' inputs that checkpointing keeps, of what the other layers
    keep, and of the layer that is computed again beside what is still kept then.

    every: of so many layers one is computed again; 0 for none. parts: workers that hold a sequence together.
    """
    width = 1.0 if mixed_precision else 2.0
    # Keys and values are copied where there are fewer heads of them than workers.
    kv = facts.kv * (math.lcm(facts.kv_heads, parts) // facts.kv_heads if facts.kv_heads else 1)
    layer = width * tokens * (22.7 * facts.hidden + 11.9 * facts.intermediate + 4.5 * kv)
    if tiled:  # the rest of the layer has its peak elsewhere, where much is float32
        rest = (41.0 if mixed_precision else 45.4) * facts.hidden + width * 4.5 * kv
        layer = min(layer, tokens * rest + width * 11.9 * MLP_TILE_BYTES / 4)
    kept = width * tokens * (16 * facts.hidden + 4.1 * kv + (0 if tiled else 8 * facts.intermediate))
    if not every:
        return 0.0, facts.layers * kept, 0.0
    again = -(-facts.layers // every)
    # The backward pass meets the last of these layers when what the layers after it kept is freed.
    before = (again - 1) * (every - 1)
    inputs = again * tokens * width * 2 * facts.hidden
    return inputs, (facts.layers - again) * kept, before * kept + layer


def trained_parameters(facts: ModelFacts, model: Model) -> int:
    """Estimate of the number of trained weights."""
    if model.beacon is not None:
        return beacon.trained_parameters(facts, model.beacon)
    if model.adapter is None:
        return facts.linear_parameters + facts.embedding_parameters
    tables = _trained_tables(facts, model)
    return facts.lora_parameters(model.adapter.rank) + tables * facts.vocabulary * facts.hidden


def _trained_tables(facts: ModelFacts, model: Model) -> int:
    """Of the embedding and the head, how many matrices are trained."""
    if model.beacon is not None:
        return 0
    if model.adapter is None:
        return 1 if facts.tied else 2
    whole = [name.rsplit(".", 1)[-1] for name in model.adapter.modules_to_save]
    return sum(name in EMBEDDINGS for name in whole)
