"""Next-token losses from hidden states, tile by tile, so that logits never exist all at once.

Losses are summed over a micro-batch, or over each of its documents: a gradient of one number per document
may come back. A document's summed log-probability is its loss with the other sign.
"""

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
    everything = torch.zeros_like(targets)
    return document_cross_entropy(hidden, head, targets, everything, 1, tile_bytes=tile_bytes)[0]


def document_cross_entropy(
    hidden: torch.Tensor,
    head: nn.Module,
    targets: torch.Tensor,
    document: torch.Tensor,
    documents: int,
    *,
    tile_bytes: int = TILE_BYTES,
) -> torch.Tensor:
    """Sums of the cross-entropies by document, float32[documents]; 0 for a document without targets.

    hidden: [N, H]; targets, document: int64[N], the token to predict and the number of its document.
    As `summed_cross_entropy`; a linear head that is itself trained is computed again in the backward pass
    when there are several documents, because only there it is known how much each one counts.
    """
    if not len(targets):
        # Keeps the graph, so that every trained weight of every worker has a gradient.
        nothing = sum((weight.sum() for weight in head.parameters()), start=hidden.sum())
        return (0.0 * nothing).float().expand(documents)
    tile = max(1, tile_bytes // (4 * _vocabulary(head)))
    if type(head) is nn.Linear and head.bias is None and _autocast_dtype(hidden) != torch.float16:
        arguments = (targets, document, documents, tile, _autocast_dtype(hidden))
        losses = _TiledCrossEntropy.apply(hidden, head.weight, *arguments)
        assert isinstance(losses, torch.Tensor)
        return losses
    losses = hidden.new_zeros(documents, dtype=torch.float32)
    for start in range(0, len(targets), tile):
        part = (hidden[start : start + tile], targets[start : start + tile])
        own = checkpoint(_tile_losses, head, *part, use_reentrant=False)
        assert isinstance(own, torch.Tensor)
        losses = losses.index_add(0, document[start : start + tile], own)
    return losses


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


def _tile_losses(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(head(hidden).float(), targets, reduction="none")


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
    """Losses and gradients of a linear head, tile by tile: a tile's logits are never kept.

    The gradient of a token's loss is one vector, whatever comes back for its document, so that of the hidden
    states is taken in the forward pass and scaled in the backward pass. That of the head is a sum over all
    tokens: it is taken in the forward pass too when they all are of one document.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        document: torch.Tensor,
        documents: int,
        tile: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        trains_hidden, trains_weight = ctx.needs_input_grad[:2]
        again = trains_weight and documents > 1
        hidden_gradient = torch.empty_like(hidden) if trains_hidden and not again else None
        takes_weight = trains_weight and not again
        weight_gradient: torch.Tensor | None = None
        losses = hidden.new_zeros(documents, dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(dtype)
            for start in range(0, len(targets), tile):
                here = slice(start, start + tile)
                part = hidden[here].to(dtype)
                target = targets[here, None]
                logits = (part @ matrix.T).float()
                normalizer = logits.logsumexp(dim=-1, keepdim=True)
                own = (normalizer - logits.gather(1, target))[:, 0]
                if documents == 1:
                    losses += own.sum()
                else:
                    losses.index_add_(0, document[here], own)
                if hidden_gradient is None and not takes_weight:
                    continue
                gradient = _logit_gradient(logits, normalizer, target).to(dtype)
                if hidden_gradient is not None:
                    hidden_gradient[here] = gradient @ matrix
                if takes_weight:
                    weight_gradient = _added(weight_gradient, gradient.T @ part)
        ctx.again = again
        if again:
            ctx.save_for_backward(hidden, weight, targets, document)
        else:
            ctx.save_for_backward(hidden_gradient, weight_gradient, document)
        ctx.settings = (tile, dtype, weight.dtype)
        return losses

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        tile, dtype, weight_dtype = ctx.settings
        nothing = (None,) * 5
        if ctx.again:
            hidden_gradient, weight_gradient = _recomputed(*ctx.saved_tensors, scale, tile, dtype)
            return hidden_gradient, weight_gradient.to(weight_dtype), *nothing
        hidden_gradient, weight_gradient, document = ctx.saved_tensors
        if hidden_gradient is not None:
            scales = scale[0] if len(scale) == 1 else scale[document, None]
            hidden_gradient = hidden_gradient * scales.to(hidden_gradient.dtype)
        if weight_gradient is not None:
            # In place: it is as large as the head. A second backward pass through this would raise, as PyTorch sees to.
            weight_gradient = weight_gradient.mul_(scale[0]).to(weight_dtype)
        return hidden_gradient, weight_gradient, *nothing


def _recomputed(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    document: torch.Tensor,
    scale: torch.Tensor,
    tile: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of hidden states and head, each token scaled by its document's number."""
    hidden_gradient = torch.empty_like(hidden)
    weight_gradient: torch.Tensor | None = None
    with torch.autocast(hidden.device.type, enabled=False):
        matrix = weight.to(dtype)
        for start in range(0, len(targets), tile):
            here = slice(start, start + tile)
            part = hidden[here].to(dtype)
            logits = (part @ matrix.T).float()
            normalizer = logits.logsumexp(dim=-1, keepdim=True)
            gradient = _logit_gradient(logits, normalizer, targets[here, None])
            gradient = (gradient * scale[document[here], None]).to(dtype)
            hidden_gradient[here] = gradient @ matrix
            weight_gradient = _added(weight_gradient, gradient.T @ part)
    assert weight_gradient is not None  # there are targets
    return hidden_gradient, weight_gradient


def _added(total: torch.Tensor | None, part: torch.Tensor) -> torch.Tensor:
    """A sum in float32. Its first part is taken as it is, since a second matrix of this size would count."""
    return part.float() if total is None else total.add_(part)


def _logit_gradient(logits: torch.Tensor, normalizer: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Softmax minus one at the target. Overwrites `logits`."""
    gradient = logits.sub_(normalizer).exp_()
    return gradient.scatter_add_(1, target, gradient.new_full(target.shape, -1.0))
