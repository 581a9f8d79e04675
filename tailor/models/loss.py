"""Next-token losses from hidden states, one tile of tokens at a time, so that the logits [S, V] never exist as a whole.

For 8192 supervised tokens and a vocabulary of 128k, float32 logits take 4 GiB, and their gradient as much again; a tile
takes 256 MiB. Losses are summed over a micro-batch or over each of its documents. The log-probability of a document is
its summed loss with the sign reversed. Shapes: see `tailor.models`; R is the number of tokens in a tile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tailor.spec.methods.base import NO_TERMS, LossTerms

TILE_BYTES = 256 * 2**20
"""Maximum bytes of float32 logits that exist at one time. A small vocabulary needs a single tile."""


def summed_cross_entropy(
    hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor, *, tile_bytes: int = TILE_BYTES
) -> torch.Tensor:
    """Sum of the cross-entropies of `head(hidden)` against `targets`, a float32 scalar; 0 without targets.

    hidden: [S, H]; targets: int64[S]. For a plain linear head, the gradient is computed in the forward pass, tile by
    tile. Any other head (one with an adapter, for example) is computed again in the backward pass.
    """
    document = torch.zeros_like(targets)  # int64[S]: all targets count as one document
    return document_cross_entropy(hidden, head, targets, document, 1, tile_bytes=tile_bytes)[0]


def summed_loss(
    hidden: torch.Tensor,
    head: nn.Module,
    targets: torch.Tensor,
    terms: LossTerms,
    *,
    tile_bytes: int = TILE_BYTES,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sum of the cross-entropies with the terms of a recipe, a float32 scalar, and what it is made of, without a graph.

    The parts are sums over the targets too: `cross_entropy`, without any term, and `z_loss`, the squared logsumexp of the
    logits, without its coefficient. Without terms there are no parts. Shapes and gradient as in `summed_cross_entropy`.
    """
    if not terms:
        return summed_cross_entropy(hidden, head, targets, tile_bytes=tile_bytes), {}
    document = torch.zeros_like(targets)  # int64[S]
    losses, parts = _losses_and_parts(hidden, head, targets, document, 1, terms, tile_bytes)  # [1], [2]
    return losses[0], dict(zip(("cross_entropy", "z_loss"), parts.detach(), strict=True))


def document_cross_entropy(
    hidden: torch.Tensor,
    head: nn.Module,
    targets: torch.Tensor,
    document: torch.Tensor,
    documents: int,
    *,
    tile_bytes: int = TILE_BYTES,
) -> torch.Tensor:
    """Sums of the cross-entropies by document, float32[D]; 0 for a document without targets.

    hidden: [S, H]; targets, document: int64[S], the token to predict and the index of its document; documents: D.
    The gradient is computed as in `summed_cross_entropy`, with one exception: with several documents, a trained linear
    head is computed again in the backward pass, because the weight of each document in the loss is known only there.
    """
    return _losses_and_parts(hidden, head, targets, document, documents, NO_TERMS, tile_bytes)[0]


def _losses_and_parts(
    hidden: torch.Tensor,
    head: nn.Module,
    targets: torch.Tensor,
    document: torch.Tensor,
    documents: int,
    terms: LossTerms,
    tile_bytes: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(float32[D] losses with a graph, float32[2] sums of the cross-entropy and of the squared logsumexp; zeros without terms)."""
    parts = hidden.new_zeros(2, dtype=torch.float32)  # [2]
    if not len(targets):
        # Keeps the graph, so that every trained weight of every worker has a gradient: DDP waits for each of them.
        zero = 0.0 * sum((weight.sum() for weight in head.parameters()), start=hidden.sum())
        return zero.float().expand(documents), parts  # [D], [2]
    tile = max(1, tile_bytes // (4 * _vocabulary(head)))  # R
    # Not in fp16: the gradient is rounded in the forward pass, before the loss scale of GradScaler can lift small values.
    if type(head) is nn.Linear and head.bias is None and _autocast_dtype(hidden) != torch.float16:
        arguments = (targets, document, documents, terms, tile, _autocast_dtype(hidden))
        losses, parts = _TiledCrossEntropy.apply(hidden, head.weight, *arguments)  # type: ignore[misc]  # [D], [2]
        return losses, parts
    losses = hidden.new_zeros(documents, dtype=torch.float32)  # [D]
    for start in range(0, len(targets), tile):
        part = (hidden[start : start + tile], targets[start : start + tile])  # [R, H], int64[R]
        of_tokens, sums = checkpoint(_tile_losses, head, *part, terms, use_reentrant=False)  # float32[R], [2]
        losses = losses.index_add(0, document[start : start + tile], of_tokens)
        parts = parts + sums.detach()
    return losses, parts


@torch.no_grad()
def summed_cross_entropy_and_hits(
    hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor, *, tile_bytes: int = TILE_BYTES
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss (float32 scalar), and the number of targets that have the largest logit (int64 scalar). No gradient.

    hidden: [S, H]; targets: int64[S].
    """
    loss = hidden.new_zeros((), dtype=torch.float32)
    hits = torch.zeros((), dtype=torch.int64, device=hidden.device)
    tile = max(1, tile_bytes // (4 * _vocabulary(head)))
    for start in range(0, len(targets), tile):
        logits = head(hidden[start : start + tile]).float()  # [R, V]
        part = targets[start : start + tile]  # int64[R]
        loss += functional.cross_entropy(logits, part, reduction="sum")
        hits += (logits.argmax(dim=-1) == part).sum()
    return loss, hits


def _tile_losses(
    head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, terms: LossTerms
) -> tuple[torch.Tensor, torch.Tensor]:
    """([R] losses of the tokens of a tile, [2] sums of their parts)."""
    logits = head(hidden).float()  # [R, V]
    if not terms:
        return functional.cross_entropy(logits, targets, reduction="none"), logits.new_zeros(2)
    return _with_terms(logits, logits.logsumexp(dim=-1, keepdim=True), targets[:, None], terms)


def _with_terms(
    logits: torch.Tensor, normalizer: torch.Tensor, target: torch.Tensor, terms: LossTerms
) -> tuple[torch.Tensor, torch.Tensor]:
    """([R] losses of tokens, [2] sums of their parts). logits: float32[R, V]; normalizer: [R, 1]; target: int64[R, 1].

    Smoothing mixes the logit of the target with the mean logit, because the mean of -log p over the vocabulary is
    normalizer - mean(logits). This is `label_smoothing` of PyTorch's cross_entropy and LabelSmoother of transformers.
    """
    plain = (normalizer - logits.gather(1, target))[:, 0]  # [R]
    squares = normalizer[:, 0] ** 2  # [R]
    even = normalizer[:, 0] - logits.mean(dim=-1)  # [R], the cross-entropy against all tokens alike
    losses = (1 - terms.label_smoothing) * plain + terms.label_smoothing * even + terms.z_loss * squares
    return losses, torch.stack([plain.detach().sum(), squares.detach().sum()])


def _vocabulary(head: nn.Module) -> int:
    # `out_features` first: under ZeRO-3, reading the weight would gather it from all workers.
    if size := getattr(head, "out_features", 0):
        return int(size)
    weight = getattr(head, "weight", None)
    return len(weight) if weight is not None else 2**17  # unknown: about the largest vocabularies in use


def _autocast_dtype(hidden: torch.Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class _TiledCrossEntropy(torch.autograd.Function):
    """Losses and gradients of a linear head, tile by tile. The logits of a tile are not kept for the backward pass.

    The forward pass computes the gradient of the hidden states, as each tile's logits exist there anyway. The backward
    pass multiplies each token's row by the incoming gradient of its document. (Same idea as the fused linear cross-entropy
    of Liger Kernel, arXiv 2410.10989.) The gradient of the head is a sum over all tokens. With one document it is computed
    in the forward pass too, since one factor scales the sum; with several, tokens have different factors.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        document: torch.Tensor,
        documents: int,
        terms: LossTerms,
        tile: int,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert documents == 1 or not terms  # the backward pass of several documents knows no terms
        trains_hidden, trains_weight = ctx.needs_input_grad[:2]
        recompute = trains_weight and documents > 1
        hidden_gradient = torch.empty_like(hidden) if trains_hidden and not recompute else None  # [S, H]
        takes_weight = trains_weight and not recompute
        weight_gradient: torch.Tensor | None = None  # float32[V, H]
        losses = hidden.new_zeros(documents, dtype=torch.float32)  # [D]
        parts = hidden.new_zeros(2, dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(dtype)  # [V, H]
            for start in range(0, len(targets), tile):
                in_tile = slice(start, start + tile)
                part = hidden[in_tile].to(dtype)  # [R, H]
                target = targets[in_tile, None]  # int64[R, 1]
                logits = (part @ matrix.T).float()  # [R, V]
                normalizer = logits.logsumexp(dim=-1, keepdim=True)  # [R, 1]
                if terms:
                    of_tokens, sums = _with_terms(logits, normalizer, target, terms)  # [R], [2]
                    parts += sums
                else:
                    of_tokens = (normalizer - logits.gather(1, target))[:, 0]  # [R]
                if documents == 1:
                    losses += of_tokens.sum()
                else:
                    losses.index_add_(0, document[in_tile], of_tokens)
                if hidden_gradient is None and not takes_weight:
                    continue
                gradient = _logit_gradient(logits, normalizer, target, terms).to(dtype)  # [R, V]
                if hidden_gradient is not None:
                    hidden_gradient[in_tile] = gradient @ matrix  # [R, H]
                if takes_weight:
                    weight_gradient = _accumulated(weight_gradient, gradient.T @ part)  # [V, H]
        ctx.recompute = recompute
        if recompute:
            ctx.save_for_backward(hidden, weight, targets, document)
        else:
            ctx.save_for_backward(hidden_gradient, weight_gradient, document)
        ctx.settings = (tile, dtype, weight.dtype)
        ctx.mark_non_differentiable(parts)
        return losses, parts

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """scale: float32[D], the incoming gradient of each document's loss."""
        tile, dtype, weight_dtype = ctx.settings
        no_gradients = (None,) * 6  # of the arguments that are not trained
        if ctx.recompute:
            hidden_gradient, weight_gradient = _recomputed(*ctx.saved_tensors, scale, tile, dtype)
            return hidden_gradient, weight_gradient.to(weight_dtype), *no_gradients
        hidden_gradient, weight_gradient, document = ctx.saved_tensors
        if hidden_gradient is not None:
            scales = scale[0] if len(scale) == 1 else scale[document, None]  # [] or [S, 1]
            hidden_gradient = hidden_gradient * scales.to(hidden_gradient.dtype)  # [S, H]
        if weight_gradient is not None:
            # In place, because the gradient is as large as the head. PyTorch raises if the same graph is used a second time.
            weight_gradient = weight_gradient.mul_(scale[0]).to(weight_dtype)
        return hidden_gradient, weight_gradient, *no_gradients


def _recomputed(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    document: torch.Tensor,
    scale: torch.Tensor,
    tile: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the hidden states [S, H] and of the head, float32[V, H]. scale: [D], for the tokens of each document."""
    hidden_gradient = torch.empty_like(hidden)  # [S, H]
    weight_gradient: torch.Tensor | None = None  # float32[V, H]
    with torch.autocast(hidden.device.type, enabled=False):
        matrix = weight.to(dtype)  # [V, H]
        for start in range(0, len(targets), tile):
            in_tile = slice(start, start + tile)
            part = hidden[in_tile].to(dtype)  # [R, H]
            logits = (part @ matrix.T).float()  # [R, V]
            normalizer = logits.logsumexp(dim=-1, keepdim=True)  # [R, 1]
            gradient = _logit_gradient(logits, normalizer, targets[in_tile, None], NO_TERMS)  # float32[R, V]
            gradient = (gradient * scale[document[in_tile], None]).to(dtype)  # [R, V]
            hidden_gradient[in_tile] = gradient @ matrix  # [R, H]
            weight_gradient = _accumulated(weight_gradient, gradient.T @ part)  # [V, H]
    assert weight_gradient is not None  # there are targets
    return hidden_gradient, weight_gradient


def _accumulated(total: torch.Tensor | None, part: torch.Tensor) -> torch.Tensor:
    """A sum in float32, [V, H]. The first part becomes the total: adding it to zeros would take a second matrix [V, H]."""
    return part.float() if total is None else total.add_(part)


def _logit_gradient(
    logits: torch.Tensor, normalizer: torch.Tensor, target: torch.Tensor, terms: LossTerms
) -> torch.Tensor:
    """Gradient of the loss with respect to the logits, [R, V]: softmax minus the target. Overwrites `logits`."""
    smoothing, vocabulary = terms.label_smoothing, logits.shape[1]
    gradient = logits.sub_(normalizer).exp_()  # [R, V], the softmax
    if terms.z_loss:  # the gradient of the logsumexp is the softmax
        gradient.mul_(1 + 2 * terms.z_loss * normalizer)
    if smoothing:
        gradient.sub_(smoothing / vocabulary)
    return gradient.scatter_add_(1, target, gradient.new_full(target.shape, smoothing - 1.0))
