"""Load-balancing loss of mixture-of-experts models (Switch Transformers, arXiv 2101.03961, equations 4 to 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tailor.models.documents import TokenBatch


@dataclass(frozen=True)
class Router:
    """Settings from a model's config. top_k: experts per token. weight: of the balancing loss, `router_aux_loss_coef`."""

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
        """Sum over rows of (balancing loss of the row × its supervised tokens), a float32 scalar with a graph.

        logits: [B · T, experts] of each layer. The balancing loss of a row is `top_k` when its tokens use all experts
        equally, and up to the number of experts when all tokens use the same `top_k` of them. It is computed per row,
        because the rows of a batch do not depend on the micro-batch size or the number of workers. The sum is divided by
        the supervised tokens of the batch, as every loss is, which makes it a mean over tokens.
        """
        # In the shapes, R is the number of rows, N of tokens without padding, E of experts.
        rows = batch.rows.flatten()  # int64[B · T]
        real = (rows >= 0).nonzero()[:, 0]  # int64[N], padding left out
        rows = rows[real]  # int64[N]
        count = int(rows.max()) + 1
        experts = logits[0].shape[-1]
        assigned = torch.zeros(count, experts, device=rows.device)  # [R, E], tokens that go to each expert
        probability = torch.zeros(count, experts, device=rows.device)  # [R, E], summed over tokens
        for layer in logits:
            of_token = layer[real].float().softmax(dim=-1)  # [N, E]
            chosen = torch.zeros_like(of_token).scatter_(1, of_token.topk(self.top_k, dim=-1).indices, 1.0)
            assigned = assigned.index_add(0, rows, chosen.detach())
            probability = probability.index_add(0, rows, of_token)
        tokens = len(logits) * torch.bincount(rows, minlength=count)[:, None]  # [R, 1]
        balance = experts * (assigned / tokens * (probability / tokens)).sum(dim=-1)  # [R]
        supervised = torch.bincount(batch.rows.flatten()[batch.predicting], minlength=count)  # int64[R]
        return (balance * supervised).sum()
