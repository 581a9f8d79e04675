"""`method` with `name: rerank`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tailor.spec.data import RELEVANCE
from tailor.spec.methods.base import MethodSection, TextLimits


class Rerank(MethodSection):
    """A reranker: a cross-encoder that reads a query and a passage together and scores the passage.

    It reads the same rows as embeddings. The loss is the mean over the queries of the global batch.
    """

    implementation = "tailor.methods.rerank:build"
    metrics = ("ranking_loss", "distillation_loss", "ranking_accuracy", "ndcg_at_10")
    rules = "tailor.spec.rules.methods.rerank"
    reads = (RELEVANCE,)
    documents_per_pass = "puts several passages into one forward pass"

    name: Literal["rerank"]
    """The method."""

    loss: Literal["listwise", "pointwise"] = "listwise"
    """`listwise`: cross-entropy of the softmax over the scores of a query's passages, whose target is the positive passage.
    `pointwise`: binary cross-entropy of each passage's score, averaged over the passages of the query.
    """

    group_size: int = Field(8, ge=2)
    """Passages per query in a step: one positive and group_size - 1 negatives of the query's row, drawn again in each epoch.
    If a row has fewer negatives, they repeat. A row without any gets random passages of other rows of its dataset.
    """

    distillation: Literal["kl", "margin_mse"] | None = None
    """Also learn a teacher's scores of the passages of each row (`pos_scores` and `neg_scores`, or `scores`; `tailor score`
    writes them). `kl`: the KL divergence between the softmax of the teacher's scores and that of the model's scores.
    `margin_mse`: the mean squared error of the differences between the positive's score and those of the negatives
    (arXiv 2010.02666). Default: off.
    """

    distillation_weight: float = Field(1.0, gt=0)
    """Weight of the distillation loss."""

    ranking_weight: float = Field(1.0, ge=0)
    """Weight of the ranking loss (`loss`) beside the distillation loss. 0: learn the teacher's scores only."""

    teacher_temperature: float = Field(1.0, ge=1e-6)
    """With `distillation: kl`, the teacher's scores are divided by it. The scores of a cross-encoder are logits, which suit 1;
    cosine similarities need a small one, such as 0.02.
    """

    @property
    def ranked_passages(self) -> int:
        return self.group_size

    def text_limits(self, max_length: int) -> TextLimits:
        return TextLimits(max_length, max_length, scores=self.distillation is not None, pairs=True)
