"""Summed next-token loss from hidden states, tile by tile, so that logits never exist all at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

TILE_BYTES = 256 * 2**20
"""Most bytes of float32 logits that exist at one time. Small vocabularies need one tile only."""


def summed_cross_entropy(
    hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor, *, tile_bytes: int = TILE_BYTES
) -> torch.Tensor:
    """Sum of the cross-entropies of `head(hidden)` against `targets`, a float32 scalar; 0 for no targets.

    hidden: [N, H]; targets: int64[N]. A plain linear head takes its gradient in the forward pass, one
    tile at a time; any other head (with an adapter, say) is computed again in the backward pass.
    """
    if not len(targets):
        # Keeps the graph, so that every trained weight of every worker has a gradient.
        return 0.0 * sum((weight.sum() for weight in head.parameters()), start=hidden.sum()).float()
    tile = max(1, tile_bytes // (4 * _vocabulary(head)))
    if type(head) is nn.Linear and head.bias is None and _autocast_dtype(hidden) != torch.float16:
        loss = _TiledCrossEntropy.apply(hidden, head.weight, targets, tile, _autocast_dtype(hidden))
        assert isinstance(loss, torch.Tensor)
        return loss
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(targets), tile):
        part = (hidden[start : start + tile], targets[start : start + tile])
        total = total + checkpoint(_tile_loss, head, *part, use_reentrant=False)
    return total


@torch.no_grad()
def summed_cross_entropy_and_hits(
    hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor, *, tile_bytes: int = TILE_BYTES
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss, and how many targets have the largest logit. For evaluation."""
    loss = hidden.new_zeros((), dtype=torch.float32)
    hits = torch.zeros((), dtype=torch.int64, device=hidden.device)
    tile = max(1, tile_bytes // (4 * _vocabulary(head)))
    for start in range(0, len(targets), tile):
        logits = head(hidden[start : start + tile]).float()
        part = targets[start : start + tile]
        loss += functional.cross_entropy(logits, part, reduction="sum")
        hits += (logits.argmax(dim=-1) == part).sum()
    return loss, hits


def _tile_loss(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(head(hidden).float(), targets, reduction="sum")


def _vocabulary(head: nn.Module) -> int:
    # The weight is looked at only where it must be: a strategy may have to gather it for that.
    if size := getattr(head, "out_features", 0):
        return int(size)
    weight = getattr(head, "weight", None)
    return len(weight) if weight is not None else 2**17


def _autocast_dtype(hidden: torch.Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class _TiledCrossEntropy(torch.autograd.Function):
    """Loss and gradients of a linear head, tile by tile, in one pass: a tile's logits are never kept."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        tile: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        hidden_gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        loss = hidden.new_zeros((), dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(dtype)
            for start in range(0, len(targets), tile):
                part = hidden[start : start + tile].to(dtype)
                target = targets[start : start + tile, None]
                logits = (part @ matrix.T).float()
                normaliser = logits.logsumexp(dim=-1, keepdim=True)
                loss += (normaliser - logits.gather(1, target)).sum()
                if hidden_gradient is None and weight_gradient is None:
                    continue
                gradient = logits.sub_(normaliser).exp_()
                gradient.scatter_add_(1, target, gradient.new_full(target.shape, -1.0))
                gradient = gradient.to(dtype)
                if hidden_gradient is not None:
                    hidden_gradient[start : start + tile] = gradient @ matrix
                if weight_gradient is not None:
                    weight_gradient += gradient.T @ part
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return (
            None if hidden_gradient is None else hidden_gradient * scale.to(hidden_gradient.dtype),
            None if weight_gradient is None else (weight_gradient * scale).to(ctx.weight_dtype),
            None,
            None,
            None,
        )
