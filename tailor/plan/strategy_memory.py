"""The part of the memory forecast that depends on the strategy: sharded state and communication buffers.

Each term is the size of an allocation seen in a trace of PyTorch's allocator; none is a fitted constant. Terms are in bytes
and are kept apart by phase of a step (loss, backward pass, its end or the update), because buffers of one phase are freed
before the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pkgutil import resolve_name

from tailor.plan.facts import ModelFacts
from tailor.spec.strategy import DeepSpeed, Fsdp, Strategy


@dataclass(frozen=True)
class Footprint:
    """What the strategy-dependent memory is computed from: sizes for one unsharded worker, in bytes unless noted."""

    facts: ModelFacts
    weights: float
    """All weights; trained ones are float32."""
    optimizer: float
    trained: int
    """Number of trained weights."""
    tables: int
    """How many of the two matrices, embedding and output head, are trained."""
    low: int
    """Bytes per weight of the precision of computation: 2 or 4."""
    head: float
    """Peak of the gradient of a trained output head, which is computed together with the loss."""
    copies_at_loss: float
    """16-bit copies of float32 weights made by autocast, during the loss. Strategies that cast the weights have none."""
    copies: float
    """The same, during the backward pass."""
    stack: int
    """Number of weights of the largest stack of experts, if it is trained."""
    on_host: bool
    """Workers compute on CPUs and communicate through gloo, which copies what it gathers and scatters."""

    @property
    def layer(self) -> float:
        """Number of weights of a decoder layer."""
        return self.facts.linear_parameters / self.facts.layers

    @property
    def trained_layer(self) -> float:
        """Number of trained weights of a decoder layer."""
        return (self.trained - self.tables * self.table) / self.facts.layers

    @property
    def largest(self) -> int:
        """Number of weights of the largest trained tensor, as far as it may be larger than a bucket."""
        return max(self.table * min(self.tables, 1), self.stack)

    @property
    def table(self) -> int:
        """Number of weights of the embedding, or of the output head."""
        return self.facts.table


@dataclass(frozen=True)
class Share:
    """Memory of one worker under a strategy, in bytes."""

    weights: float
    gradients: float
    """Gradients that are kept between micro-batches."""
    optimizer: float
    loss: float
    """Additional memory during the loss, besides the three above and the activations."""
    backward: float
    """Additional memory during the backward pass of the last layers, where the activations are largest."""
    later: float = 0.0
    """Additional memory after the activations are freed: at the end of the backward pass, or in the update."""
    start: float = 0.0
    """Total memory while the model is loaded and sharded, if it is more than the weights."""


def share(strategy: Strategy | None, workers: int, footprint: Footprint, sizes: Mapping[str, int]) -> Share:
    """Call the memory function of the strategy; None means ddp. sizes: `zero_sizes` of DeepSpeed."""
    function = unsharded if strategy is None else resolve_name(strategy.memory)
    result: Share = function(strategy, workers, footprint, sizes)
    return result


def unsharded(
    strategy: Strategy | None, workers: int, footprint: Footprint, sizes: Mapping[str, int]
) -> Share:
    """ddp: every worker has all weights, gradients and optimizer state."""
    return Share(
        weights=footprint.weights,
        gradients=4.0
        * footprint.trained,  # DDP's buckets; gradients are views of them (gradient_as_bucket_view)
        optimizer=footprint.optimizer,
        loss=footprint.head + footprint.copies_at_loss,
        backward=footprint.copies
        + 4.0 * footprint.stack,  # the gradient of a stack, before it is added to its bucket
        later=4.0
        * footprint.table
        * min(footprint.tables, 1),  # the gradient of the embedding, before it is added to its bucket
    )


def fsdp(strategy: Fsdp, workers: int, footprint: Footprint, sizes: Mapping[str, int]) -> Share:
    """fsdp: everything is sharded; the weights of a layer are gathered while it computes."""
    low, layer, trained = footprint.low, footprint.layer, footprint.trained_layer
    # Embedding and head belong to FSDP's root module, which stays gathered from the first layer to the last.
    root = low * footprint.facts.embedding_parameters
    tables = float(footprint.tables * footprint.table)
    # The gradients of a layer, in low precision and in float32 for the reduce-scatter; the gathered weights of this layer,
    # and the prefetched ones of the layer before it. gloo's copy of the latter is freed before all gradients exist.
    in_flight = 2 * low * layer + 4 * trained + low * max(trained, layer * footprint.on_host)
    resident = 0.0 if strategy.offload else 1 / workers
    return Share(
        weights=resident * footprint.weights,
        gradients=resident * 4.0 * footprint.trained,
        optimizer=resident * footprint.optimizer,
        loss=root + footprint.head,
        backward=root
        + in_flight
        + low
        * footprint.table
        * min(footprint.tables, 1),  # the head's gradient is reduced last, with the root
        later=root + (low + 4 + 4 * footprint.on_host) * tables,
        start=footprint.weights * (1 + 1 / workers)
        if footprint.on_host
        else 0.0,  # rank 0 loads the whole model
    )


def deepspeed(strategy: DeepSpeed, workers: int, footprint: Footprint, sizes: Mapping[str, int]) -> Share:
    """DeepSpeed ZeRO: the stage determines what is sharded."""
    if strategy.stage == 3:
        return _stage_3(strategy, workers, footprint, sizes)
    return _stage_1_and_2(strategy, workers, footprint, sizes["reduce_bucket_size"])


def _stage_1_and_2(strategy: DeepSpeed, workers: int, footprint: Footprint, bucket: int) -> Share:
    trained, shard = float(footprint.trained), footprint.trained / workers
    low = (
        4 if strategy.stage == 1 else footprint.low
    )  # stage 1 runs without DeepSpeed's bf16 mode (tailor/plan/deepspeed.py)
    weights = footprint.weights + (low - 4) * trained
    optimizer = footprint.optimizer / workers + 4 * shard  # with float32 master weights
    # A bucket is flattened and reduced in float32. A gradient that is larger than a bucket is reduced by itself.
    flattened = low * bucket + (4 * bucket if low < 4 else 0)
    oversized = (low + (4 if low < 4 else 0)) * footprint.largest if footprint.largest > bucket else 0
    at_loss = copies = 0.0
    if strategy.stage == 1:
        gradients, current = 4 * trained, 0.0
        at_loss, copies = footprint.copies_at_loss, footprint.copies
    else:  # summed over the earlier micro-batches, and of the current one
        gradients, current = 4 * shard, low * shard
    offloads = strategy.offload_optimizer is not None
    if offloads:
        optimizer, gradients = 0.0, gradients if strategy.stage == 1 else 0.0
    return Share(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        loss=footprint.head + at_loss + low * bucket,  # the last flattened bucket is kept
        backward=copies + low * bucket + max(flattened, oversized) + current,
        # Stage 1 reduces after the backward pass, into a copy of its shard. The update flattens the shard.
        later=4 * shard + low * bucket + flattened if strategy.stage == 1 else 0.0 if offloads else 4 * shard,
        # The loaded weights. DeepSpeed flattens them into one buffer; on a CPU both exist at the same time.
        start=max(footprint.weights, weights + (low * trained + 4 * shard if footprint.on_host else 0.0)),
    )


def _stage_3(strategy: DeepSpeed, workers: int, footprint: Footprint, sizes: Mapping[str, int]) -> Share:
    low, shard, facts = footprint.low, footprint.trained / workers, footprint.facts
    bucket = sizes["reduce_bucket_size"]
    reuse = min(sizes["stage3_max_live_parameters"], sizes["stage3_max_reuse_distance"])
    body = float(facts.linear_parameters)
    # Gathered at the same time: the embedding and the head, weights that are used again soon (reuse distance), and the
    # prefetched layer.
    gathered = low * (
        facts.embedding_parameters + min(body, max(2 * footprint.layer, reuse)) + footprint.layer
    )
    largest = max(bucket, footprint.largest)
    # Gradients to reduce: in float32, concatenated by worker, and gloo's copy of that.
    reduced = 4.0 * min(largest, footprint.trained) * ((low < 4) + 1 + footprint.on_host)
    optimizer = footprint.optimizer / workers + 4 * shard
    gradients = 4 * shard
    if strategy.offload_optimizer is not None:
        optimizer = gradients = 0.0
    weights = (footprint.weights + (low - 4) * footprint.trained) / workers
    return Share(
        weights=0.0 if strategy.offload_parameters is not None else weights,
        gradients=gradients + 4 * bucket,  # DeepSpeed keeps its bucket allocated
        optimizer=optimizer,
        loss=gathered + footprint.head,
        backward=gathered + reduced,
        later=max(
            gradients, low * facts.embedding_parameters + low * footprint.tables * footprint.table + reduced
        ),
        start=footprint.weights * (1 + 1 / workers)
        if footprint.on_host
        else 0.0,  # rank 0 loads the whole model
    )
