"""Pretraining: next-token cross-entropy, summed over every token that has one before it."""

from __future__ import annotations

import torch

from tailor.batches import Batch, Batches
from tailor.models.causal import CausalModel
from tailor.models.documents import TokenBatch
from tailor.spec.method import Pretrain as PretrainSpec


class Pretrain:
    """Whether documents are joined or isolated was decided with the batches."""

    def units(self, batches: Batches, batch: Batch) -> int:
        return batches.units(batch)

    def loss(self, model: CausalModel, batch: TokenBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return model.training_loss(batch)

    def evaluate(self, model: CausalModel, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        return model.next_token_loss_and_hits(batch)


def build(spec: PretrainSpec) -> Pretrain:
    return Pretrain()
