"""Losses of the routers of mixture-of-experts models, computed per document.

The load-balancing loss is that of Switch Transformers (arXiv 2101.03961, equations 4 to 6), the z-loss that of ST-MoE (arXiv
2202.08906, equation 5). A document is the same for every micro-batch size, number of workers and packing, and so are its
losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from tailor.errors import ModelError
from tailor.models.documents import TokenBatch
from tailor.plan import experts
from tailor.spec.model import Model


class RouterLoss(NamedTuple):
    """Losses of a micro-batch, float32 scalars that are summed over its documents, each times the units of the document."""

    weighted: torch.Tensor
    """What is added to the training loss, with a graph."""
    statistics: dict[str, torch.Tensor]
    """The losses without their weights and without a graph: `router_loss` and `router_z_loss`."""


@dataclass(frozen=True)
class Router:
    """Settings. top_k: experts per token. weight: of the load-balancing loss. z_weight: of the z-loss."""

    top_k: int
    weight: float
    z_weight: float = 0.0

    @classmethod
    def of(cls, config: Any, spec: Model | None = None, *, by_config: bool = True) -> Router | None:
        """None without a weight above 0.

        spec: the recipe's `model`. Without `router_aux_loss` in it, the config decides as in transformers, if `by_config`:
        `router_aux_loss_coef`, if `output_router_logits` is true. ModelError if the recipe sets weights for a model without
        such losses.
        """
        wanted = None if spec is None else spec.router_aux_loss
        weight, z_weight = float(wanted or 0.0), 0.0 if spec is None else spec.router_z_loss
        if wanted is None and by_config and getattr(config, "output_router_logits", False):
            weight = float(getattr(config, "router_aux_loss_coef", None) or 0.0)
        if not weight and not z_weight:
            return None
        top_k = experts.active(config.to_dict())
        if not top_k or (weight and not hasattr(config, "router_aux_loss_coef")):
            key = "router_aux_loss" if top_k else "router_z_loss"
            why = "balances its experts without such a loss" if top_k else "has no routers"
            raise ModelError(
                f"model.{key}: the model ({config.model_type}) {why}", hint=f"remove model.{key}"
            )
        return cls(top_k, weight, z_weight)

    def losses(self, logits: Sequence[torch.Tensor], batch: TokenBatch, units: torch.Tensor) -> RouterLoss:
        """The losses of a micro-batch. logits: [B · T, experts] of each layer; on each worker, those of its own tokens.

        units: [D], the weight of each document, such as its supervised tokens. Their sum over the batch is what the method's
        loss is divided by, so each loss becomes a mean.
        """
        if not logits:
            raise ModelError(
                "the model returns no logits of its routers", hint="set model.router_aux_loss: 0"
            )
        total = torch.zeros((), device=units.device)
        statistics = {}
        if self.weight:
            balance = self.loss(logits, batch, units)
            total = total + self.weight * balance
            statistics["router_loss"] = balance.detach()
        if self.z_weight:
            z_loss = (_z_losses(logits, batch) * units).sum()
            total = total + self.z_weight * z_loss
            statistics["router_z_loss"] = z_loss.detach()
        return RouterLoss(total, statistics)

    def loss(self, logits: Sequence[torch.Tensor], batch: TokenBatch, units: torch.Tensor) -> torch.Tensor:
        """Sum over documents of (balancing loss of the document × its units), a float32 scalar with a graph.

        logits: [B · T, experts] of each layer. The balancing loss of a document is `top_k` when its tokens use all
        experts equally, and up to the number of experts when all tokens use the same `top_k` of them. With sequence
        parallelism, each worker returns the part of its own tokens: the loss is linear in their probabilities.
        """
        # In the shapes, N is the number of tokens without padding, E of experts.
        document, real = _real(batch)
        count = len(units)
        width = logits[0].shape[-1]  # E
        assigned = torch.zeros(count, width, device=document.device)  # [D, E], tokens that go to each expert
        probability = torch.zeros(count, width, device=document.device)  # [D, E], summed over tokens
        for layer in logits:
            of_token = layer[real].float().softmax(dim=-1)  # [N, E]
            chosen = torch.zeros_like(of_token).scatter_(1, of_token.topk(self.top_k, dim=-1).indices, 1.0)
            assigned = assigned.index_add(0, document, chosen.detach())
            probability = probability.index_add(0, document, of_token)
        assigned = _of_whole_documents(assigned, batch)
        tokens = len(logits) * _lengths(batch, count)[:, None]  # [D, 1]
        balance = width * (assigned / tokens * (probability / tokens)).sum(dim=-1)  # [D]
        return (balance * units).sum()


def _z_losses(logits: Sequence[torch.Tensor], batch: TokenBatch) -> torch.Tensor:
    """The mean of logsumexp(logits)² over the tokens and layers of each document, float32[D]."""
    document, real = _real(batch)
    total = torch.zeros(len(batch.supervised), device=document.device)  # [D]
    for layer in logits:
        total = total.index_add(0, document, layer[real].float().logsumexp(dim=-1).square())
    return total / (len(logits) * _lengths(batch, len(total)))


def _lengths(batch: TokenBatch, documents: int) -> torch.Tensor:
    """Tokens of each document, int64[D], also those on other workers."""
    return _of_whole_documents(torch.bincount(_real(batch)[0], minlength=documents), batch)


def _of_whole_documents(counts: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
    """Counts of this worker's tokens [D, ...], summed in place over the workers that the documents are split over."""
    sequence = batch.documents.sequence if batch.documents is not None else None
    if sequence is not None:
        dist.all_reduce(counts, group=sequence.group)
    return counts


def _real(batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """(document of each token, its position in the flattened batch), int64[N] each, without padding."""
    document = batch.token_document.flatten()  # int64[B · T]
    real = (document >= 0).nonzero()[:, 0]  # int64[N]
    return document[real], real
