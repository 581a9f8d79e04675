"""Training of rerankers: losses on the scores of a query's passages, and NDCG@10 in evaluations.

listwise    cross-entropy of the softmax over the scores of a group, with the positive passage as target, as in FlagEmbedding's
            rerankers
pointwise   binary cross-entropy of each score, 1 for the positive passage and 0 for the others, as in sentence-transformers'
            BinaryCrossEntropyLoss; the mean over the passages of a group

Shapes: see `tailor.models`; D pairs of R queries, G of each that the loss compares, the positive first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from tailor.data import ranking_batches
from tailor.data.batches import Batch, Batches
from tailor.data.rows import examples_of
from tailor.data.split import Split
from tailor.encode.pair_examples import token_types, with_passage
from tailor.methods.base import LossSum, Method
from tailor.methods.distillation import group_loss
from tailor.methods.reference import Reference
from tailor.models import scoring_head
from tailor.models.causal import CausalModel
from tailor.models.collator import Collator, lay_out_pairs
from tailor.models.documents import TokenBatch
from tailor.spec.methods.rerank import Rerank as RerankSpec

CUTOFF = 10
"""Ranks that NDCG counts."""


class Rerank(Method):
    """Loss of groups of pairs. The pairs of a query are one row of the batch, so that a micro-batch never splits them."""

    def __init__(self, spec: RerankSpec) -> None:
        self.spec = spec

    def denominator(self, batches: Batches, batch: Batch) -> int:
        return batches.groups(batch)

    def read(self, collator: Collator, batch: Batch, part: slice) -> TokenBatch:
        split, rows = collator.split, batch[part]
        members = [examples_of(row) for row in rows]
        is_own = [ranking_batches.is_own(split, row) for row in members]
        good = [split.is_positive[row] & own for row, own in zip(members, is_own, strict=True)]
        laid_out = lay_out_pairs(
            [
                pair
                for row, own in zip(members, is_own, strict=True)
                for pair in _pairs(split, row, own, collator.max_length)
            ]
        )
        assert laid_out.pairs is not None
        starts = np.cumsum([0, *(len(row) for row in members)])
        compared = np.stack(
            [start + self._compared(own) for start, own in zip(starts, good, strict=False)]
        )  # [R, G]
        numbers = np.concatenate(members)  # [D]
        pairs = replace(
            laid_out.pairs,
            group=torch.from_numpy(np.repeat(np.arange(len(members)), [len(row) for row in members])),
            compared=torch.from_numpy(compared),
            teacher=torch.from_numpy(np.asarray(split.score[numbers[compared]], np.float32)),
        )
        is_positive = torch.from_numpy(np.concatenate(good))  # [D]
        return replace(laid_out, step=collator.step, is_positive=is_positive, pairs=pairs)

    def _compared(self, is_positive: np.ndarray) -> np.ndarray:
        """int64[G]: positions in a row of its first positive and its first negatives, which repeat if there are too few."""
        negatives = np.flatnonzero(~np.asarray(is_positive, bool))
        return np.array([0, *negatives[np.arange(self.spec.group_size - 1) % len(negatives)]], np.int64)

    def loss(self, model: CausalModel, batch: TokenBatch, prepass_mean: float) -> LossSum:
        assert batch.pairs is not None
        group = batch.pairs.group  # int64[D]
        units = 1 / torch.bincount(group)[group]  # float32[D]: the pairs of a query count as one
        scores, routers, statistics = model.with_routers(
            batch, units, partial(scoring_head.scores_to_train, model.base, batch)
        )
        found = self._loss(scores, batch)
        return LossSum(found.loss + routers, {**found.statistics, **statistics})

    def evaluate(self, model: CausalModel, batch: TokenBatch, prepass_mean: float) -> LossSum:
        assert batch.pairs is not None
        scores = scoring_head.scores(model.base, batch)  # [D]
        found = self._loss(scores, batch)
        gains = ndcg(scores, batch.is_positive, batch.pairs.group)  # [R]
        return LossSum(found.loss, {**found.statistics, "ndcg_at_10": gains.sum()})

    def _loss(self, scores: torch.Tensor, batch: TokenBatch) -> LossSum:
        """scores: float32[D]."""
        assert batch.pairs is not None
        spec, grouped = self.spec, scores[batch.pairs.compared]  # [R, G]
        ranking = ranking_loss(grouped, spec.loss)
        loss = spec.ranking_weight * ranking
        first = grouped[:, 0] > grouped[:, 1:].max(1).values  # bool[R]
        statistics = {"ranking_loss": ranking.detach(), "ranking_accuracy": first.sum()}
        if spec.distillation is not None:
            distilled = group_loss(grouped, batch.pairs.teacher, spec)
            loss = loss + spec.distillation_weight * distilled
            statistics["distillation_loss"] = distilled.detach()
        return LossSum(loss, statistics)

    def metrics(self, sums: Mapping[str, float], denominator: int) -> dict[str, float]:
        """Means over the queries. `ranking_accuracy`: the share of queries whose positive has a higher score than the negatives
        that the loss compares it with; `ndcg_at_10`: of all passages of a row, in evaluations."""
        return {name: total / denominator for name, total in sums.items() if name != "loss"}


def _pairs(
    split: Split, row: Sequence[int], is_own: np.ndarray, max_length: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token ids and token types of the pairs of a row: its own, and its query with passages of other rows."""
    first = split.example(row[0])
    for number, own in zip(row, is_own, strict=True):
        example = split.example(number)
        if own:
            yield example.input_ids, token_types(len(example.input_ids), example.spans)
        else:
            yield with_passage(first, example, max_length)


def ranking_loss(scores: torch.Tensor, kind: str) -> torch.Tensor:
    """The loss summed over the queries. scores: float32[R, G], the positive first."""
    if kind == "listwise":
        return cross_entropy(
            scores, torch.zeros(len(scores), dtype=torch.int64, device=scores.device), reduction="sum"
        )
    labels = torch.zeros_like(scores)
    labels[:, 0] = 1
    return binary_cross_entropy_with_logits(scores, labels, reduction="none").mean(1).sum()


@torch.no_grad()
def ndcg(scores: torch.Tensor, is_positive: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """NDCG@10 of each group, float32[R], with gain 1 for positives. Of equal scores, negatives come first.

    scores: float32[D]; is_positive: bool[D]; group: int64[D], from 0.
    """
    found = []
    for number in range(int(group.max()) + 1):
        own, good = scores[group == number], is_positive[group == number]
        order = torch.argsort(good.long(), stable=True)  # negatives first
        order = order[torch.argsort(own[order], descending=True, stable=True)]
        gains = good[order].float()
        discounts = 1 / torch.log2(torch.arange(len(gains), device=gains.device) + 2.0)
        ideal = discounts[: min(int(good.sum()), CUTOFF)].sum()
        found.append((gains * discounts)[:CUTOFF].sum() / ideal)
    return torch.stack(found)


def build(spec: RerankSpec, reference: Reference | None) -> Rerank:
    return Rerank(spec)
