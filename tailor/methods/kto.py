"""Kahneman-Tversky optimization of labeled answers (KTO, Ethayarajh et al. 2024, arXiv 2402.01306).

The loss compares the log-ratio of each answer (policy to reference) with z0, an estimate of the KL divergence between
the two models. z0 is the mean log-ratio of the KL batch, at least 0: each prompt of the global batch is paired with the
answer of another example of the batch. A pre-pass computes z0 before the losses, without a gradient. The pairing depends
on the examples of the batch alone, so that z0 is the same for any number of workers, micro-batch size and packing. If a
batch has one example only, its prompt is paired with the answer of the next example in the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from tailor.data.batches import Batch, Batches
from tailor.data.split import Split
from tailor.methods.base import LossSum, Method
from tailor.methods.reference import Reference
from tailor.models.causal import CausalModel
from tailor.models.collator import Collator, Document, targets_of
from tailor.models.documents import TokenBatch
from tailor.spec.methods.kto import Kto as KtoSpec

_SCATTER = 2654435761
"""Knuth's multiplicative hash: an odd number near 2**32 / golden ratio, whose multiples modulo 2**32 are well scattered."""


class Kto(Method):
    """Loss of labeled answers. Each of the D documents of a micro-batch is a prompt with one answer."""

    has_prepass = True

    def __init__(self, spec: KtoSpec, reference: Reference) -> None:
        self.spec = spec
        self.reference = reference
        self._partners: tuple[Batch, dict[int, int]] | None = None

    def denominator(self, batches: Batches, batch: Batch) -> int:
        return batches.groups(batch)

    def read(self, collator: Collator, batch: Batch, part: slice) -> TokenBatch:
        partners = self._kl_partners(batch, len(collator.split))
        packs = [
            [kl_document(collator.split, prompt, partners[prompt], collator.max_length) for prompt in row]
            for row in batch[part]
        ]
        return replace(collator(batch[part]), kl_batch=collator.lay_out(packs))

    def _kl_partners(self, batch: Batch, examples: int) -> dict[int, int]:
        """`kl_partners` of the batch that is being read, computed once per batch: an evaluation batch has all rows and many
        micro-batches."""
        cached = self._partners
        if cached is None or cached[0] is not batch:
            self._partners = cached = batch, kl_partners(batch, examples)
        return cached[1]

    def prepass(self, model: CausalModel, batch: TokenBatch) -> torch.Tensor:
        assert batch.kl_batch is not None
        with model.inference_mode():
            policy = model.log_probabilities(batch.kl_batch)  # float32[D]
        return (policy - self.reference.log_probabilities(model, batch.kl_batch)).sum()

    def loss(self, model: CausalModel, batch: TokenBatch, prepass_mean: float) -> LossSum:
        reference = self.reference.log_probabilities(model, batch)  # float32[D]
        policy, routers, statistics = model.answers(batch, documents_per_unit=1)
        log_ratio = policy - reference  # float32[D]
        z0 = max(0.0, prepass_mean)
        losses = answer_losses(self.spec, log_ratio, batch.is_positive, z0)  # float32[D]
        statistics |= self._statistics(log_ratio.detach(), batch.is_positive, z0)
        return LossSum(losses.sum() + routers, statistics)

    def _statistics(
        self, log_ratio: torch.Tensor, is_positive: torch.Tensor, z0: float
    ) -> dict[str, torch.Tensor]:
        rewards = self.spec.beta * log_ratio  # float32[D]
        return {
            "reward_desirable": rewards[is_positive].sum(),
            "reward_undesirable": rewards[~is_positive].sum(),
            "desirable": is_positive.sum(),
            "undesirable": (~is_positive).sum(),
            "reward_accuracy": ((log_ratio > z0) == is_positive).sum(),
            "divergence": torch.full_like(log_ratio, z0).sum(),
        }

    def metrics(self, sums: Mapping[str, float], denominator: int) -> dict[str, float]:
        """Means over the answers; `divergence` is z0. `reward_accuracy` counts rewards above beta · z0 for desirable answers,
        and at most beta · z0 for undesirable ones."""
        found = {name: sums[name] / denominator for name in ("reward_accuracy", "divergence")}
        for label in ("desirable", "undesirable"):
            if sums[label]:
                found[f"reward_{label}"] = sums[f"reward_{label}"] / sums[label]
        if len(found) == 4:
            found["reward_margin"] = found["reward_desirable"] - found["reward_undesirable"]
        routers = (name for name in ("router_loss", "router_z_loss") if name in sums)
        return found | {name: sums[name] / denominator for name in routers}


def answer_losses(
    spec: KtoSpec, log_ratio: torch.Tensor, is_positive: torch.Tensor, z0: float
) -> torch.Tensor:
    """Loss of each answer, float32[D]. log_ratio: float32[D], policy to reference; is_positive: bool[D]."""
    margin = spec.beta * (log_ratio - z0)  # [D]
    return torch.where(
        is_positive,
        spec.desirable_weight * (1 - torch.sigmoid(margin)),
        spec.undesirable_weight * (1 - torch.sigmoid(-margin)),
    )


def kl_partners(batch: Batch, examples: int) -> dict[int, int]:
    """The KL batch of a batch: for each example, the example whose answer its prompt is paired with.

    examples: number of examples in the split.
    """
    # In a scattered order: neighbors in a file often answer the same prompt, and the answer must be to another one.
    members = sorted(
        {example for row in batch for example in row}, key=lambda example: example * _SCATTER % 2**32
    )
    if len(members) == 1:
        return {members[0]: (members[0] + 1) % examples}
    return dict(zip(members, [*members[1:], members[0]], strict=True))


def kl_document(split: Split, prompt: int, answer: int, max_length: int) -> Document:
    """The prompt of one example followed by the answer of another. If longer than `max_length`, the prompt's start is cut."""
    of_prompt, of_answer = split.example(prompt), split.example(answer)
    start = int(of_answer.spans[0, 0])  # first token of the answer
    ids = np.asarray(of_prompt.input_ids[: int(of_prompt.spans[0, 0])], np.int64)
    rest = np.asarray(of_answer.input_ids[start:], np.int64)[
        : max_length - 1
    ]  # at least one prompt token is kept
    ids = ids[max(0, len(ids) + len(rest) - max_length) :]
    spans = np.minimum(of_answer.spans - start, len(rest)) + len(ids)
    ids = np.concatenate([ids, rest])
    return Document(ids, targets_of(ids, spans))


def build(spec: KtoSpec, reference: Reference | None) -> Kto:
    assert reference is not None
    return Kto(spec, reference)
