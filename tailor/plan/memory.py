"""Forecast of a worker's peak memory, before anything is loaded.

Bytes per token of one layer and of the logits were calibrated on decoders of the Llama kind
(attention over documents, tiled loss); see docs/design/architecture.md. It is a forecast, not a promise:
the run logs the measured peak beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tailor.plan import beacon_memory
from tailor.plan.facts import ModelFacts
from tailor.spec.model import Model
from tailor.spec.scale import Ddp, DeepSpeed, Fsdp, Strategy

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
BUCKET = 5e8
"""Elements that DeepSpeed reduces at once, by its default."""
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

    @property
    def peak(self) -> int:
        kept = self.weights + self.gradients + self.optimizer + self.reference + self.embeddings
        return kept + self.activations + self.logits


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
) -> Memory:
    """Peak of one worker whose micro-batch has `rows` rows of `length` tokens, held with `sequence_parallel` - 1 others.

    strategy: ddp where none is given.
    """
    tokens = rows * length
    trained = trained_parameters(facts, model)
    frozen = facts.linear_parameters + facts.embedding_parameters if model.adapter or model.beacon else 0
    weights = 4.0 * trained
    if frozen:
        per_linear = QUANTIZED_BYTES[model.quantize.type] if model.quantize else BYTES[frozen_dtype]
        plain = facts.linear_parameters - facts.quantized_parameters + facts.embedding_parameters
        weights += per_linear * facts.quantized_parameters + BYTES[frozen_dtype] * plain
        if model.quantize:  # the largest matrix is dequantised for each product
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
            beacon_memory.activations(
                facts,
                model.beacon,
                rows=rows,
                length=length,
                width=width,
                checkpointing=bool(activation_checkpointing),
            ),
        )
        at_loss = activations + min(12.0 * facts.vocabulary * tokens, 3.0 * LOSS_TILE_BYTES)
    whole = Memory(
        weights=int(weights),
        gradients=4 * trained,
        optimizer=OPTIMIZER_BYTES[optimizer] * trained,
        activations=int(activations if activation_offloading else activations + inputs),
        logits=int(max(0.0, at_loss - activations)),
        reference=4 * trained if reference_copy else 0,
        host=int(inputs) if activation_offloading else 0,
    )
    if strategy is None or isinstance(strategy, Ddp):
        return whole
    held = 2.0 if mixed_precision else 4.0
    return _shared(whole, facts, strategy, workers, trained=trained, held=held)


def _shared(
    whole: Memory, facts: ModelFacts, strategy: Strategy, workers: int, *, trained: int, held: float
) -> Memory:
    """What of `whole` one of the workers holds. held: bytes of a weight that is computed with."""
    layer = held * facts.linear_parameters / facts.layers
    ends = held * facts.embedding_parameters
    if isinstance(strategy, Fsdp):
        # Beside its part: the layer that is computed and the next one, whose weights are on their way, the
        # embedding and the head, and in the backward pass the float32 gradient of the larger of the two.
        gathered = 2 * layer + ends
        largest = max(facts.linear_parameters / facts.layers, facts.embedding_parameters)
        reduced = 4.0 * min(largest, trained)
        device = 0 if strategy.offload else 1
        return replace(
            whole,
            weights=int(device * whole.weights / workers + gathered),
            gradients=int(device * whole.gradients / workers + reduced),
            optimizer=device * whole.optimizer // workers,
        )
    assert isinstance(strategy, DeepSpeed)
    # DeepSpeed keeps the float32 weights that the optimizer changes beside those that are computed with.
    masters = (whole.optimizer + 4 * trained) // workers
    low = 4.0 if strategy.stage == 1 else held
    weights = whole.weights + (low - 4.0) * trained
    gradients = 4.0 * trained if strategy.stage == 1 else 4.0 * trained / workers + low * min(trained, BUCKET)
    if strategy.stage == 3:
        weights = weights / workers * (strategy.offload_parameters is None) + 2 * layer + ends
    if strategy.offload_optimizer is not None:
        masters, gradients = 0, low * min(trained, BUCKET)
    return replace(whole, weights=int(weights), gradients=int(gradients), optimizer=masters)


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
        return beacon_memory.trained_parameters(facts, model.beacon)
    if model.adapter is None:
        return facts.linear_parameters + facts.embedding_parameters
    whole = [name.rsplit(".", 1)[-1] for name in model.adapter.modules_to_save]
    tables = sum(name in EMBEDDINGS for name in whole)
    return facts.lora_parameters(model.adapter.rank) + tables * facts.vocabulary * facts.hidden
