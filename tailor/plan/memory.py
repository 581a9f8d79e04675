"""Forecast of a worker's peak memory, before the model is loaded.

`activation_memory` counts the activations, `strategy_memory` what the sharding strategy adds. The run logs the
measured peak next to the forecast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tailor.plan import activation_memory, beacon, experts
from tailor.plan.activation_memory import Trained
from tailor.plan.facts import ModelFacts
from tailor.plan.strategy_memory import Footprint, share
from tailor.spec.adapter import REPLACING
from tailor.spec.model import HEADS, TOKEN_TABLES, Model
from tailor.spec.strategy import Strategy

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTIZED_BYTES = {"nf4": 0.516, "fp4": 0.516, "int8": 1.03}
"""Bytes per weight with the quantization constants; in 4 bits these are one byte per block of 64 weights."""
OPTIMIZER_BYTES = {
    "adamw": 8,
    "paged_adamw": 8,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "adafactor": 1,
    "lion": 4,
    "muon": 4,
    "schedule_free": 8,
    "sgd": 4,
}
"""Bytes of optimizer state per trained weight, such as AdamW's two float32 moments."""
LOSS_TILE_BYTES = 256 * 2**20
"""Logits of one tile of the tiled loss, in float32."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one worker at the peak, by purpose."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    """What the loss needs in addition to the activations."""
    reference: int = 0
    """The frozen reference model of a preference method."""
    host: int = 0
    """Host memory for `train.activation_offloading` (the inputs of the layers). Not part of the peak."""
    embeddings: int = 0
    """Embeddings of all texts of a batch, their gradients, and a tile of the similarity matrix."""
    exchange: int = 0
    """What the strategy adds at the peak of a step: communication buckets and gathered weights."""

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
    unquantized: int = 0,
    router_losses: int = 0,
) -> Memory:
    """Forecast the peak of one worker whose micro-batch has `rows` rows of `length` tokens.

    With sequence_parallel N, the rows are split over N workers. strategy: None means ddp. on_host: the device is a CPU.
    zero_sizes: DeepSpeed's buffer sizes (`tailor.plan.deepspeed.zero_sizes`). unquantized: number of weights in linear
    modules that `model.quantize` leaves plain. router_losses: number of losses of the routers.
    """
    tokens = rows * length
    trained = trained_parameters(facts, model)
    frozen = facts.linear_parameters + facts.embedding_parameters if model.adapter or model.beacon else 0
    weights, dequantized = 4.0 * trained, 0.0
    if frozen:
        per_linear = QUANTIZED_BYTES[model.quantize.type] if model.quantize else BYTES[frozen_dtype]
        compressed = facts.quantized_parameters - unquantized
        plain = facts.linear_parameters - compressed + facts.embedding_parameters
        weights += per_linear * compressed + BYTES[frozen_dtype] * plain
        if model.quantize:
            # Each matmul dequantizes its matrix, or its stack of experts: one buffer of the largest.
            stack = experts.largest_stack(facts.stacks)
            dequantized = BYTES[frozen_dtype] * max(facts.hidden * facts.intermediate, stack)
    if model.adapter is not None and model.adapter.init in REPLACING:  # the frozen initial matrices
        weights += 4.0 * facts.adapter_parameters(model.adapter.model_copy(update={"modules_to_save": []}))
    worker_tokens = tokens / sequence_parallel
    width = 1.0 if mixed_precision else 2.0
    computed = 2 if mixed_precision else 4
    layers = Trained(
        model.adapter,
        residual=_residual(model, strategy, frozen_dtype, mixed_precision=mixed_precision),
        width=computed,
        mask=computed if on_host else 1,
        casts=strategy is not None and (strategy.casts_weights or strategy.shards_weights),
    )
    found = activation_memory.activations(
        facts,
        layers,
        worker_tokens,
        every=activation_checkpointing,
        tiled=tiled_mlp,
        parts=sequence_parallel,
    )
    # The logits of all routers, or their gradients, and for each loss a float32 tensor of the same size.
    routed = 1.0 * bool(router_losses) * facts.layers * facts.experts * worker_tokens
    inputs, kept = found.inputs, found.kept + computed * routed
    # The loss and the recomputation of a layer (activation checkpointing) never happen at the same time.
    # 12 bytes per logit: three float32 tensors of that size.
    logits = min(12.0 * facts.vocabulary * worker_tokens, 3.0 * LOSS_TILE_BYTES) if facts.has_head else 0.0
    at_loss = (
        kept
        + logits
        + 4 * router_losses * routed
        + activation_memory.at_loss(layers) * facts.hidden * worker_tokens
    )
    if model.adapter is not None and model.add_tokens:
        # PEFT copies the tables to put the new rows in, and their gradients have the size of a table too.
        copies_of_tables = 2 * facts.embedding_parameters
        at_loss += copies_of_tables * BYTES[frozen_dtype]
    activations = found.peak + computed * routed + dequantized
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
            )
            + dequantized,
        )
        at_loss = activations + min(12.0 * facts.vocabulary * tokens, 3.0 * LOSS_TILE_BYTES)
    tables = _trained_tables(facts, model)
    table = facts.table
    head = tables > 0 and facts.has_head
    # Autocast makes 16-bit copies of the float32 weights in the forward pass and keeps them for the backward pass, except
    # in recomputed layers. The copy of the head is only needed for the loss. The grouped products of experts make none of
    # the stacks, and their own of adapters.
    of_experts = _trained_in_experts(facts, model)
    copies = 2.0 * (trained - tables * table - of_experts) if mixed_precision else 0.0
    if model.adapter is not None:
        copies += experts.copied_bytes(facts.stacks, model.adapter, computed)
    recomputed = -(-facts.layers // activation_checkpointing) if activation_checkpointing else 0
    footprint = Footprint(
        facts,
        weights=weights,
        optimizer=OPTIMIZER_BYTES[optimizer] * trained + _table_state(optimizer, model, table, tables),
        trained=trained,
        tables=tables,
        low=2 if mixed_precision else 4,
        head=_head_gradient(facts, worker_tokens, mixed_precision=mixed_precision) if head else 0.0,
        copies_at_loss=copies + (2.0 * table if mixed_precision and head else 0.0),
        copies=copies * (1 - recomputed / facts.layers),
        stack=experts.largest_stack(facts.stacks) if model.adapter is None and model.beacon is None else 0,
        on_host=on_host,
    )
    per_worker = share(strategy, workers, footprint, zero_sizes or {})
    # The input of the layer that is computed again is back on the device.
    kept_inputs = inputs / max(1, recomputed) if activation_offloading else inputs
    without_strategy = max(at_loss, activations) + kept_inputs
    passes = max(at_loss + per_worker.loss, activations + per_worker.backward) + kept_inputs
    resident = per_worker.weights + per_worker.gradients + per_worker.optimizer
    peak = max(passes, per_worker.later, per_worker.start - resident)
    return Memory(
        weights=int(per_worker.weights),
        gradients=int(per_worker.gradients),
        optimizer=int(per_worker.optimizer),
        activations=int(activations + kept_inputs),
        logits=int(max(0.0, at_loss - activations)),
        reference=4 * trained if reference_copy else 0,
        host=int(inputs) if activation_offloading else 0,
        exchange=int(peak - without_strategy),
    )


def _residual(model: Model, strategy: Strategy | None, frozen_dtype: str, *, mixed_precision: bool) -> int:
    """Bytes of an element of the residual stream. Autocast leaves it in the type of the embedding's weights."""
    if not mixed_precision:
        return 4
    if strategy is not None and strategy.casts_weights:
        return 2
    trains_embedding = model.adapter is None or any(
        name.rsplit(".", 1)[-1] in TOKEN_TABLES and name.rsplit(".", 1)[-1] not in HEADS
        for name in model.adapter.modules_to_save
    )
    return 4 if trains_embedding and model.beacon is None else BYTES[frozen_dtype]


def _head_gradient(facts: ModelFacts, tokens: float, *, mixed_precision: bool) -> float:
    """Bytes for the gradient of a trained head during the loss: the float32 sum, and the product of one tile."""
    table = float(facts.table)
    one_tile = 4 * facts.vocabulary * tokens <= LOSS_TILE_BYTES
    product = 2 if mixed_precision else 0 if one_tile else 4
    return (4 + product) * table


def trained_parameters(facts: ModelFacts, model: Model) -> int:
    """Number of trained weights: counted if there is an outline with the same adapter, else estimated."""
    outline = facts.outline
    if outline is not None and outline.groups and outline.adapter == model.adapter:
        return outline.trained
    if model.beacon is not None:
        return beacon.trained_parameters(facts, model.beacon)
    new_rows = len(model.add_tokens) * facts.embedding * (1 if facts.tied else 2)
    if model.adapter is not None:
        return facts.adapter_parameters(model.adapter) + new_rows
    return (
        outline.used
        if outline is not None
        else facts.linear_parameters + facts.embedding_parameters + new_rows
    )


def _table_state(optimizer: str, model: Model, table: int, tables: int) -> float:
    """Bytes that the state of the trained embeddings and heads of `table` weights each has more than that of other weights.

    8-bit optimizers have a 32-bit one for embeddings, Muon leaves both to AdamW.
    """
    if optimizer == "muon":
        return 4.0 * tables * table
    if not optimizer.endswith("_8bit") or model.beacon is not None:
        return 0.0
    names = (
        [] if model.adapter is None else [name.rsplit(".", 1)[-1] for name in model.adapter.modules_to_save]
    )
    trained = model.adapter is None or any(name in TOKEN_TABLES and name not in HEADS for name in names)
    return 6.0 * table if trained else 0.0


def _trained_in_experts(facts: ModelFacts, model: Model) -> int:
    """Number of trained weights in stacks of experts, or in adapters on them."""
    if model.adapter is not None:
        return experts.adapter_parameters(facts.stacks, model.adapter)
    return sum(map(math.prod, facts.stacks.values())) if model.beacon is None else 0


def _trained_tables(facts: ModelFacts, model: Model) -> int:
    """How many of the two matrices, embedding and output head, are trained."""
    if model.beacon is not None:
        return 0
    if model.adapter is None:
        one = facts.tied or not facts.has_head
        return 1 if one or (facts.outline is not None and not facts.outline.trains_head) else 2
    names = [name.rsplit(".", 1)[-1] for name in model.adapter.modules_to_save]
    return sum(name in TOKEN_TABLES for name in names)
