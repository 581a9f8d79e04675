"""Next-token cross-entropy, summed over the supervised tokens: the loss of `sft` and `pretrain`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tailor.data.batches import Batch, Batches
from tailor.methods.base import LossSum, Method
from tailor.methods.reference import Reference
from tailor.models.causal import CausalModel
from tailor.models.documents import TokenBatch
from tailor.spec.methods.base import MethodSection


class NextToken(Method):
    """Next-token loss. Evaluations measure the cross-entropy without the terms of training. Which tokens are supervised is decided when the data is prepared; how they are packed, in the batches."""

    def __init__(self, spec: MethodSection) -> None:
        self.terms = spec.loss_terms

    def denominator(self, batches: Batches, batch: Batch) -> int:
        return batches.supervised_tokens(batch)

    def loss(self, model: CausalModel, batch: TokenBatch, prepass_mean: float) -> LossSum:
        return LossSum(*model.training_loss(batch, self.terms))

    def evaluate(self, model: CausalModel, batch: TokenBatch, prepass_mean: float) -> LossSum:
        loss, hits = model.next_token_loss_and_hits(batch)
        return LossSum(loss, {"hits": hits})

    def metrics(self, sums: Mapping[str, float], denominator: int) -> dict[str, float]:
        if "hits" not in sums:
            return {name: total / denominator for name, total in sums.items() if name != "loss"}
        perplexity = math.exp(min(sums["loss"] / denominator, 700.0))  # exp overflows a float64 above 709
        return {"perplexity": perplexity, "token_accuracy": sums["hits"] / denominator}


def build(spec: MethodSection, reference: Reference | None) -> NextToken:
    return NextToken(spec)
