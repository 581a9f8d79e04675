"""The balance of a mixture's experts, as a part of the loss (Switch Transformers, arXiv 2101.03961, equations 4 to 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tailor.models.documents import TokenBatch


@dataclass(frozen=True)
class Router:
    """What a model's configuration asks for. top_k: experts per token. weight: of the balance in the loss."""

    top_k: int
    weight: float

    @classmethod
    def of(cls, config: Any) -> Router | None:
        """None unless `output_router_logits` is true and `router_aux_loss_coef` is above 0, as in transformers."""
        weight = float(getattr(config, "router_aux_loss_coef", None) or 0.0)
        if not getattr(config, "output_router_logits", False) or not weight:
            return None
        return cls(int(config.num_experts_per_tok), weight)

    def loss(self, logits: Sequence[torch.Tensor], batch: TokenBatch) -> torch.Tensor:
        """Sum over the batch's rows of a row's balance times its supervised tokens, a float32 scalar with a graph.

        logits: per layer float [B × T, experts]. A row's balance is 1 when its tokens use all experts alike and
        up to experts × `top_k` when they don't. It is taken per row because rows are the same however a batch is
        cut into micro-batches and shared by workers; divided by the batch's supervised tokens it is a mean.
        """
        rows = batch.rows.flatten()
        real = (rows >= 0).nonzero()[:, 0]
        rows = rows[real]
        count = int(rows.max()) + 1
        experts = logits[0].shape[-1]
        used = torch.zeros(count, experts, device=rows.device)
        is_positive = torch.zeros(count, experts, device=rows.device)
        for layer in logits:
            shares = layer[real].float().softmax(dim=-1)
            chosen = torch.zeros_like(shares).scatter_(1, shares.topk(self.top_k, dim=-1).indices, 1.0)
            used = used.index_add(0, rows, chosen.detach())
            is_positive = is_positive.index_add(0, rows, shares)
        tokens = len(logits) * torch.bincount(rows, minlength=count)[:, None]
        balance = experts * (used / tokens * (is_positive / tokens)).sum(dim=-1)
        supervised = torch.bincount(batch.rows.flatten()[batch.predicting], minlength=count)
        return (balance * supervised).sum()
