"""Less activation memory: activation checkpointing, offloading to host memory, and tiled feed-forward blocks.

Checkpointing keeps the input of a decoder layer and computes the rest again in the backward pass. Offloading keeps these
inputs in host memory. Both leave every result unchanged to the last bit. A tiled feed-forward block processes one tile of
tokens at a time, so that its wide intermediate activations exist for that tile only (Arctic Long Sequence Training, arXiv
2506.13996).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from tailor.errors import ModelError
from tailor.models import recurrence
from tailor.models.decoder import decoder_of

TILE_BYTES = 64 * 2**20
"""Maximum bytes of one intermediate float32 tensor in a tiled feed-forward block."""
FEED_FORWARD = ("mlp", "feed_forward", "ffn")
"""Names of the feed-forward block in a decoder layer, over the model families."""


def checkpoint_layers(base: Any, *, every: int, offload: bool) -> None:
    """Checkpoint every `every`-th decoder layer of a transformers model. offload: keep the inputs in host memory.

    ModelError if the layers cannot be found and `every` or `offload` needs them.
    """
    if hasattr(base, "activation_checkpointing_enable"):
        base.activation_checkpointing_enable()
    else:  # transformers before 5.23
        base.gradient_checkpointing_enable({"use_reentrant": False})
    layers = decoder_layers(base)
    if not layers and (every > 1 or offload):
        raise ModelError(
            f"train.activation_checkpointing: {type(base).__name__} has no decoder layers that can be checkpointed one by one",
            hint="set train.activation_checkpointing: true, without train.activation_offloading",
        )
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = index % every == 0
        layer._gradient_checkpointing_func = _offloading if offload else _checkpointing


def decoder_layers(base: Any) -> list[Any]:
    """The decoder layers of a transformers model, in order; empty if the model does not mark them."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in decoder_of(base).modules() if isinstance(module, GradientCheckpointingLayer)]


def _offloading(function: Callable[..., Any], hidden: torch.Tensor, *arguments: Any) -> Any:
    """Checkpoint one layer. Its input [B, T, H] moves to host memory and back to the device for the backward pass."""
    storage = hidden.untyped_storage().data_ptr()

    def pack(tensor: torch.Tensor) -> Any:
        # Only the layer's input: its other arguments (positions, RoPE tables) are shared by all layers.
        if tensor.untyped_storage().data_ptr() != storage or not tensor.is_floating_point():
            return tensor
        return _to_host(tensor), tensor.device

    def unpack(packed: Any) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        on_host, device = packed
        tensor: torch.Tensor = on_host.to(device, non_blocking=True)
        return tensor

    with saved_tensors_hooks(pack, unpack):
        return _checkpointing(function, hidden, *arguments)


def _checkpointing(function: Callable[..., Any], *arguments: Any) -> Any:
    return checkpoint(function, *arguments, use_reentrant=False, context_fn=recurrence.checkpoint_contexts)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    on_host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    # On the compute stream: the copy back runs later on the same stream, and so after this one.
    return on_host.copy_(tensor, non_blocking=True)


def tile_feed_forward(base: Any) -> None:
    """Make the feed-forward block of each decoder layer compute in tiles of tokens. ModelError if a layer has none.

    `probe.tiling_is_exact` checks the result.
    """
    for layer in decoder_layers(base) or [base]:
        found = [block for name in FEED_FORWARD if isinstance(block := getattr(layer, name, None), nn.Module)]
        if len(found) != 1 or not _takes_hidden_states_alone(found[0]):
            raise no_tiles(base)
        block: Any = found[0]
        widest = max(_width(module) for module in block.modules())
        block.tile = max(1, TILE_BYTES // (4 * widest))
        block.forward = MethodType(
            _tiled, block
        )  # a bound method, so that a deep copy of the block uses its own weights


def tiled_blocks(base: Any) -> list[Any]:
    """The tiled feed-forward blocks. Their attribute `tile` is the number of tokens per tile."""
    return [module for module in base.modules() if hasattr(module, "tile")]


def no_tiles(base: Any) -> ModelError:
    """The error for a model whose feed-forward blocks cannot be tiled."""
    return ModelError(
        f"train.tiled_mlp: {type(base).__name__} has no feed-forward block that processes each token independently",
        hint="set train.tiled_mlp: false",
    )


def _takes_hidden_states_alone(block: nn.Module) -> bool:
    """Whether a block takes one argument and has no experts: the routing of a token may depend on all tokens of the call."""
    arguments = inspect.signature(type(block).forward).parameters
    return len(arguments) == 2 and not any("expert" in name for name, _ in block.named_modules())


def _width(module: Any) -> int:
    width = getattr(module, "out_features", 0) or getattr(module, "nf", 0)
    return int(width)


def _tiled(block: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The forward of a tiled block. hidden: [B, T, H]; returns [B, T, H]."""
    forward = type(block).forward
    # `split`, not one slice per tile: the backward pass of each slice would fill a gradient of all tokens.
    tiles = hidden.flatten(0, 1)[None].split(block.tile, dim=1)  # [1, tile, H] each
    if len(tiles) == 1:
        out: torch.Tensor = forward(block, hidden)
        return out
    parts = [checkpoint(forward, block, part, use_reentrant=False) for part in tiles]
    return torch.cat(parts, dim=1).view_as(hidden)
