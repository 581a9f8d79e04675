"""Kahneman-Tversky optimization of labeled answers (Ethayarajh et al. 2024, arXiv 2402.01306).

Each answer's log-ratio to the reference is compared with z0, an estimate of the divergence of the model from the
reference: the mean log-ratio of kl_batch pairs, the prompt of one example with the answer of the next, over the
whole global batch and not under 0. It is computed before the losses and takes no gradient. Which example is the
next one follows from the examples of the batch alone, so z0 is the same for any number of workers, micro-batches
and packs. An example that is alone in its batch takes the next one's answer of the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from tailor.data.batches import Batch, Batches
from tailor.data.token_store import Split
from tailor.methods.base import LossSum, Method
from tailor.methods.reference import Reference
from tailor.models.causal import CausalModel
from tailor.models.documents import Collator, Document, TokenBatch, targets_of
from tailor.spec.methods.kto import Kto as KtoSpec

_SCATTER = 2654435761
"""An odd number near 2**32 divided by the golden ratio: its multiples lie scattered (Knuth's multiplicative hash)."""


class Kto(Method):
    """Every document of a micro-batch is one labeled answer."""

    has_prepass = True

    def __init__(self, spec: KtoSpec, reference: Reference) -> None:
        self.spec = spec
        self.reference = reference
        self._others: tuple[Batch, dict[int, int]] | None = None

    def denominator(self, batches: Batches, batch: Batch) -> int:
        return batches.groups(batch)

    def read(self, collator: Collator, batch: Batch, part: slice) -> TokenBatch:
        other = self._kl_partners(batch, len(collator.split))
        packs = [
            [kl_document(collator.split, prompt, other[prompt], collator.max_length) for prompt in row]
            for row in batch[part]
        ]
        return replace(collator(batch[part]), kl_batch=collator.lay_out(packs))

    def _kl_partners(self, batch: Batch, examples: int) -> dict[int, int]:
        """Of the batch that is read: once for its micro-batches, of which an evaluation of all rows has many."""
        found = self._others
        if found is None or found[0] is not batch:
            self._others = found = batch, kl_partners(batch, examples)
        return found[1]

    def prepass(self, model: CausalModel, batch: TokenBatch) -> torch.Tensor:
        assert batch.kl_batch is not None
        with model.inference_mode():
            policy = model.log_probabilities(batch.kl_batch)
        return (policy - self.reference.log_probabilities(model, batch.kl_batch)).sum()

    def loss(self, model: CausalModel, batch: TokenBatch, prepass_mean: float) -> LossSum:
        reference = self.reference.log_probabilities(model, batch)
        ratio = model.log_probabilities(batch) - reference
        divergence = max(0.0, prepass_mean)
        losses = answer_losses(self.spec, ratio, batch.is_positive, divergence)
        return LossSum(losses.sum(), self._statistics(ratio.detach(), batch.is_positive, divergence))

    def _statistics(
        self, ratio: torch.Tensor, wanted: torch.Tensor, divergence: float
    ) -> dict[str, torch.Tensor]:
        rewards = self.spec.beta * ratio
        return {
            "reward_desirable": rewards[wanted].sum(),
            "reward_undesirable": rewards[~wanted].sum(),
            "desirable": wanted.sum(),
            "undesirable": (~wanted).sum(),
            "reward_accuracy": ((ratio > divergence) == wanted).sum(),
            "divergence": torch.full_like(ratio, divergence).sum(),
        }

    def metrics(self, sums: Mapping[str, float], denominator: int) -> dict[str, float]:
        """Means. A reward is right when it is on its label's side of beta · z0 (`divergence` is z0)."""
        found = {name: sums[name] / denominator for name in ("reward_accuracy", "divergence")}
        for label in ("desirable", "undesirable"):
            if sums[label]:
                found[f"reward_{label}"] = sums[f"reward_{label}"] / sums[label]
        if len(found) == 4:
            found["reward_margin"] = found["reward_desirable"] - found["reward_undesirable"]
        return found


def answer_losses(
    spec: KtoSpec, ratio: torch.Tensor, wanted: torch.Tensor, divergence: float
) -> torch.Tensor:
    """The loss of each answer, float32[D]. ratio: log-ratio to the reference; divergence: z0."""
    away = spec.beta * (ratio - divergence)
    return torch.where(
        wanted,
        spec.desirable_weight * (1 - torch.sigmoid(away)),
        spec.undesirable_weight * (1 - torch.sigmoid(-away)),
    )


def kl_partners(batch: Batch, examples: int) -> dict[int, int]:
    """Whose answer the prompt of each example of a batch gets. examples: how many the split has."""
    # In a scattered order, because neighbors in a file are often answers to one prompt.
    members = sorted({example for row in batch for example in row}, key=lambda at: at * _SCATTER % 2**32)
    if len(members) == 1:
        return {members[0]: (members[0] + 1) % examples}
    return dict(zip(members, [*members[1:], members[0]], strict=True))


def kl_document(split: Split, prompt: int, answer: int, max_length: int) -> Document:
    """The prompt of one example with the answer of another. Over `max_length`, the prompt loses its start."""
    asked, given = split.example(prompt), split.example(answer)
    start = int(given.spans[0, 0])
    ids = np.asarray(asked.input_ids[: int(asked.spans[0, 0])], np.int64)
    rest = np.asarray(given.input_ids[start:], np.int64)[: max_length - 1]
    ids = ids[max(0, len(ids) + len(rest) - max_length) :]
    spans = np.minimum(given.spans - start, len(rest)) + len(ids)
    ids = np.concatenate([ids, rest])
    return Document(ids, targets_of(ids, spans))


def build(spec: KtoSpec, reference: Reference | None) -> Kto:
    assert reference is not None
    return Kto(spec, reference)
