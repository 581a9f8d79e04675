"""Preference tuning on pairs (DPO and its relatives). Both answers of a pair go through the model in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tailor.data.batches import Batch, Batches
from tailor.methods.base import LossSum, Method
from tailor.methods.preference import Answers, pair_losses, sft_weight
from tailor.methods.reference import Reference
from tailor.models.causal import CausalModel
from tailor.models.documents import TokenBatch
from tailor.spec.methods.dpo import Dpo as DpoSpec


class Dpo(Method):
    """Loss of preference pairs. The D documents of a micro-batch alternate: chosen, rejected, chosen, rejected, …"""

    def __init__(self, spec: DpoSpec, reference: Reference | None) -> None:
        self.spec = spec
        self.reference = reference

    def denominator(self, batches: Batches, batch: Batch) -> int:
        return batches.groups(batch)

    def loss(self, model: CausalModel, batch: TokenBatch, prepass_mean: float) -> LossSum:
        reference = torch.zeros_like(batch.supervised, dtype=torch.float32)  # [D]
        if self.reference is not None:
            reference = self.reference.log_probabilities(model, batch)
        policy, routers, statistics = model.answers(batch, documents_per_unit=2)  # float32[D]
        chosen, rejected = (
            Answers(policy[side::2], reference[side::2], batch.supervised[side::2]) for side in (0, 1)
        )
        losses = pair_losses(self.spec, chosen, rejected)  # float32[D / 2]
        return LossSum(losses.sum() + routers, {**self._statistics(chosen, rejected), **statistics})

    @torch.no_grad()
    def _statistics(self, chosen: Answers, rejected: Answers) -> dict[str, torch.Tensor]:
        # float32[D / 2] each
        reward_chosen, reward_rejected = (
            self.spec.beta * answers.score(self.spec.loss) for answers in (chosen, rejected)
        )
        sums = {
            "reward_chosen": reward_chosen.sum(),
            "reward_rejected": reward_rejected.sum(),
            "reward_accuracy": (reward_chosen > reward_rejected).sum(),
        }
        if sft_weight(self.spec):
            sums["sft_loss"] = -(chosen.policy / chosen.tokens).sum()
        return sums

    def metrics(self, sums: Mapping[str, float], denominator: int) -> dict[str, float]:
        """Means over the pairs. The reward of an answer is beta times its score (`Answers.score`), as in DPO."""
        means = {name: total / denominator for name, total in sums.items() if name != "loss"}
        margin = means["reward_chosen"] - means["reward_rejected"]
        return {**means, "reward_margin": margin}


def build(spec: DpoSpec, reference: Reference | None) -> Dpo:
    return Dpo(spec, reference)
