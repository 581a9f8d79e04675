"""Of the forecast of a worker's memory, what depends on the strategy: its share, and what it needs to exchange.

Each term is an allocation that was seen in a trace of PyTorch's allocator, and names who makes it; none is fitted. A term is
bytes, and stands for one phase of a step, because what is there in one phase is gone in the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pkgutil import resolve_name

from tailor.plan.facts import ModelFacts
from tailor.spec.strategy import DeepSpeed, Fsdp, Strategy


@dataclass(frozen=True)
class Footprint:
    """What a step needs of a model that one worker holds whole, in bytes unless it says weights."""

    facts: ModelFacts
    weights: float
    """Trained ones in float32."""
    optimizer: float
    trained: int
    """Weights."""
    tables: int
    """Of the embedding and the head, so many matrices are trained."""
    low: int
    """Bytes of a weight that is computed with."""
    head: float
    """The gradient of a trained head, which is taken together with the loss: all that is there of it at once."""
    copies_at_loss: float
    """Copies of float32 weights that mixed precision makes where a strategy holds no low weights: while the loss is taken,"""
    copies: float
    """and in the backward pass."""
    on_host: bool
    """Workers compute on CPUs and exchange through gloo, which copies what it gathers and scatters."""

    @property
    def layer(self) -> float:
        """Weights of a decoder layer."""
        return self.facts.linear_parameters / self.facts.layers

    @property
    def trained_layer(self) -> float:
        return (self.trained - self.tables * self.table) / self.facts.layers

    @property
    def table(self) -> int:
        """Weights of the embedding, or of the head."""
        return self.facts.vocabulary * self.facts.embedding


@dataclass(frozen=True)
class Share:
    """Bytes of one worker."""

    weights: float
    gradients: float
    """Kept from one micro-batch to the next."""
    optimizer: float
    loss: float
    """Beside these and the activations: while the loss is taken,"""
    backward: float
    """and in the backward pass of the last layers."""
    later: float = 0.0
    """When all activations are gone: at the end of the backward pass, or in the update."""
    start: float = 0.0
    """In all, while the model is loaded and placed, where that is more than the weights."""


def share(strategy: Strategy | None, workers: int, footprint: Footprint, sizes: Mapping[str, int]) -> Share:
    """What the strategy's own function says; `unsharded` where there is none. sizes: `zero_sizes` of DeepSpeed."""
    own = unsharded if strategy is None else resolve_name(strategy.memory)
    found: Share = own(strategy, workers, footprint, sizes)
    return found


def unsharded(
    strategy: Strategy | None, workers: int, footprint: Footprint, sizes: Mapping[str, int]
) -> Share:
    """Every worker holds everything."""
    return Share(
        weights=footprint.weights,
        gradients=4.0 * footprint.trained,  # the reducer's buckets, of which gradients are views
        optimizer=footprint.optimizer,
        loss=footprint.head + footprint.copies_at_loss,
        backward=footprint.copies,
        later=4.0
        * footprint.table
        * min(footprint.tables, 1),  # the embedding's gradient, before it is added to its bucket
    )


def fsdp(strategy: Fsdp, workers: int, footprint: Footprint, sizes: Mapping[str, int]) -> Share:
    """Parts of everything; layers are gathered while they are computed."""
    low, layer, trained = footprint.low, footprint.layer, footprint.trained_layer
    ends = (
        low * footprint.facts.embedding_parameters
    )  # of FSDP's root, whole from the first layer to the last
    tables = float(footprint.tables * footprint.table)
    # A layer's gradients, as they come and in float32 where they are cut; the layer that is computed, and the one before it
    # on its way. gloo's copy of the latter is gone when the gradients are all there.
    moving = 2 * low * layer + 4 * trained + low * max(trained, layer * footprint.on_host)
    kept = 0.0 if strategy.offload else 1 / workers
    return Share(
        weights=kept * footprint.weights,
        gradients=kept * 4.0 * footprint.trained,
        optimizer=kept * footprint.optimizer,
        loss=ends + footprint.head,
        backward=ends
        + moving
        + low * footprint.table * min(footprint.tables, 1),  # the head's gradient waits for the root's turn
        later=ends + (low + 4 + 4 * footprint.on_host) * tables,
        start=footprint.weights * (1 + 1 / workers) if footprint.on_host else 0.0,  # rank 0 loads it whole
    )


def deepspeed(strategy: DeepSpeed, workers: int, footprint: Footprint, sizes: Mapping[str, int]) -> Share:
    """Parts of what the stage shares out."""
    if strategy.stage == 3:
        return _stage_3(strategy, workers, footprint, sizes)
    return _stage_1_and_2(strategy, workers, footprint, sizes["reduce_bucket_size"])


def _stage_1_and_2(strategy: DeepSpeed, workers: int, footprint: Footprint, bucket: int) -> Share:
    trained, part = float(footprint.trained), footprint.trained / workers
    low = 4 if strategy.stage == 1 else footprint.low  # DeepSpeed is told of no bf16 in stage 1
    weights = footprint.weights + (low - 4) * trained
    optimizer = footprint.optimizer / workers + 4 * part  # with the float32 weights that it changes
    # The bucket is flattened to be reduced, in float32. What is larger than it is reduced alone.
    flattened = low * bucket + (4 * bucket if low < 4 else 0)
    alone = (
        (low + (4 if low < 4 else 0)) * footprint.table
        if footprint.tables and footprint.table > bucket
        else 0
    )
    at_loss = copies = 0.0
    if strategy.stage == 1:
        gradients, newest = 4 * trained, 0.0
        at_loss, copies = footprint.copies_at_loss, footprint.copies
    else:  # those of the micro-batches before, and of this one
        gradients, newest = 4 * part, low * part
    offloads = strategy.offload_optimizer is not None
    if offloads:
        optimizer, gradients = 0.0, gradients if strategy.stage == 1 else 0.0
    return Share(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        loss=footprint.head + at_loss + low * bucket,  # the last one that was flattened is kept
        backward=copies + low * bucket + max(flattened, alone) + newest,
        # Stage 1 reduces when the backward pass is over, into a copy of its part; in the update the part is made flat.
        later=4 * part + low * bucket + flattened if strategy.stage == 1 else 0.0 if offloads else 4 * part,
        # The weights as they were loaded; DeepSpeed lays them end to end, beside themselves where the host is the device.
        start=max(footprint.weights, weights + (low * trained + 4 * part if footprint.on_host else 0.0)),
    )


def _stage_3(strategy: DeepSpeed, workers: int, footprint: Footprint, sizes: Mapping[str, int]) -> Share:
    low, part, facts = footprint.low, footprint.trained / workers, footprint.facts
    bucket = sizes["reduce_bucket_size"]
    reuse = min(sizes["stage3_max_live_parameters"], sizes["stage3_max_reuse_distance"])
    body = float(facts.linear_parameters)
    # Whole are the embedding and the head, what will be used again soon, and what is on its way, there before it is
    # taken apart.
    gathered = low * (
        facts.embedding_parameters + min(body, max(2 * footprint.layer, reuse)) + footprint.layer
    )
    largest = max(bucket, footprint.table * min(footprint.tables, 1))
    # What is reduced: in float32, laid end to end by worker, and gloo's copy of that.
    reduced = 4.0 * min(largest, footprint.trained) * ((low < 4) + 1 + footprint.on_host)
    optimizer = footprint.optimizer / workers + 4 * part
    gradients = 4 * part
    if strategy.offload_optimizer is not None:
        optimizer = gradients = 0.0
    weights = (footprint.weights + (low - 4) * footprint.trained) / workers
    return Share(
        weights=0.0 if strategy.offload_parameters is not None else weights,
        gradients=gradients + 4 * bucket,  # DeepSpeed keeps its bucket
        optimizer=optimizer,
        loss=gathered + footprint.head,
        backward=gathered + reduced,
        later=max(
            gradients, low * facts.embedding_parameters + low * footprint.tables * footprint.table + reduced
        ),
        start=footprint.weights * (1 + 1 / workers) if footprint.on_host else 0.0,  # rank 0 loads it whole
    )
