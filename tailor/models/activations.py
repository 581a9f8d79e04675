"""What is kept of a forward pass for the backward pass: less of it (checkpointing), elsewhere (offloading), in tiles.

Checkpointing keeps the input of a decoder layer and computes the rest again. Offloading keeps these inputs in host
memory. Both are exact to the bit. A tiled feed-forward block computes a stretch of the tokens at a time, so that its
wide middle exists for that stretch only (Arctic long sequence training, arXiv 2506.13996).
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

TILE_BYTES = 64 * 2**20
"""Most bytes of one float32 tensor in the middle of a feed-forward block that is computed in tiles."""
FEED_FORWARD = ("mlp", "feed_forward", "ffn")
"""What models call the feed-forward block of a decoder layer."""


def checkpoint_layers(base: Any, *, every: int, offload: bool) -> None:
    """Keep the input of every `every`-th decoder layer of a transformers model only; with `offload`, in host memory."""
    if hasattr(base, "activation_checkpointing_enable"):
        base.activation_checkpointing_enable()
    else:  # transformers before 5.23
        base.gradient_checkpointing_enable({"use_reentrant": False})
    layers = decoder_layers(base)
    if not layers and (every > 1 or offload):
        raise ModelError(
            f"train.activation_checkpointing: the layers of {type(base).__name__} cannot be told apart",
            hint="set train.activation_checkpointing: true, without train.activation_offloading",
        )
    for at, layer in enumerate(layers):
        layer.gradient_checkpointing = at % every == 0
        if offload:
            layer._gradient_checkpointing_func = _offloading


def decoder_layers(base: Any) -> list[Any]:
    """The decoder's layers, in order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [
        module for module in base.get_decoder().modules() if isinstance(module, GradientCheckpointingLayer)
    ]


def _offloading(function: Callable[..., Any], hidden: torch.Tensor, *arguments: Any) -> Any:
    """Checkpointing of one layer whose input goes to host memory and comes back for the backward pass."""
    place = hidden.untyped_storage().data_ptr()

    def pack(tensor: torch.Tensor) -> Any:
        # The layer's input alone: what else it is given (positions, rotations) is the same for all layers.
        if tensor.untyped_storage().data_ptr() != place or not tensor.is_floating_point():
            return tensor
        return _to_host(tensor), tensor.device

    def unpack(packed: Any) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        base_record, device = packed
        tensor: torch.Tensor = base_record.to(device, non_blocking=True)
        return tensor

    with saved_tensors_hooks(pack, unpack):
        return checkpoint(function, hidden, *arguments, use_reentrant=False)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    base_record = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    # On the stream of the computation, so that the copy back, later on it, finds the bytes there.
    return base_record.copy_(tensor, non_blocking=True)


def tile_feed_forward(base: Any) -> None:
    """Compute the feed-forward block of each decoder layer in tiles of tokens. ModelError where there is none to find.

    `probe.tiling_is_exact` proves it afterwards.
    """
    for layer in decoder_layers(base) or [base]:
        found = [block for name in FEED_FORWARD if isinstance(block := getattr(layer, name, None), nn.Module)]
        if len(found) != 1 or not _takes_hidden_states_alone(found[0]):
            raise no_tiles(base)
        block: Any = found[0]
        widest = max(_width(module) for module in block.modules())
        block.tile = max(1, TILE_BYTES // (4 * widest))
        block.forward = MethodType(_tiled, block)  # a method, so that a copy of the module has its own


def tiled_blocks(base: Any) -> list[Any]:
    """The blocks that are computed in tiles; `tile` is how many tokens one has."""
    return [module for module in base.modules() if hasattr(module, "tile")]


def no_tiles(base: Any) -> ModelError:
    """What is told of a model whose feed-forward blocks cannot be cut between tokens."""
    return ModelError(
        f"train.tiled_mlp: {type(base).__name__} has no feed-forward block that takes each token by itself",
        hint="set train.tiled_mlp: false",
    )


def _takes_hidden_states_alone(block: nn.Module) -> bool:
    """One argument, and no experts: which tokens go to one of them depends on all."""
    arguments = inspect.signature(type(block).forward).parameters
    return len(arguments) == 2 and not any("expert" in name for name, _ in block.named_modules())


def _width(module: Any) -> int:
    width = getattr(module, "out_features", 0) or getattr(module, "nf", 0)
    return int(width)


def _tiled(block: Any, hidden: torch.Tensor) -> torch.Tensor:
    """hidden: [B, T, H]; the block's result, [B, T, H]."""
    forward = type(block).forward
    # Split, and not sliced one by one: the backward pass of a slice is as long as the whole.
    tiles = hidden.flatten(0, 1)[None].split(block.tile, dim=1)
    if len(tiles) == 1:
        out: torch.Tensor = forward(block, hidden)
        return out
    parts = [checkpoint(forward, block, part, use_reentrant=False) for part in tiles]
    return torch.cat(parts, dim=1).view_as(hidden)
