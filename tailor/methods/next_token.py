"""Next-token cross-entropy, summed over the supervised tokens: what `sft` and `pretrain` minimise."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tailor.data.batches import Batch, Batches
from tailor.methods.base import Method, Summed
from tailor.methods.reference import Reference
from tailor.models.causal import CausalModel
from tailor.models.documents import TokenBatch
from tailor.spec.methods import MethodSection


class NextToken(Method):
    """Which tokens are supervised, and how they lie in rows, was decided with the data and the batches."""

    def units(self, batches: Batches, batch: Batch) -> int:
        return batches.units(batch)

    def loss(self, model: CausalModel, batch: TokenBatch, surveyed: float) -> Summed:
        return Summed(*model.training_loss(batch))

    def evaluate(self, model: CausalModel, batch: TokenBatch, surveyed: float) -> Summed:
        loss, hits = model.next_token_loss_and_hits(batch)
        return Summed(loss, {"hits": hits})

    def metrics(self, sums: Mapping[str, float], units: int) -> dict[str, float]:
        if "hits" not in sums:
            return {name: total / units for name, total in sums.items() if name != "loss"}
        perplexity = math.exp(min(sums["loss"] / units, 700.0))
        return {"perplexity": perplexity, "token_accuracy": sums["hits"] / units}


def build(spec: MethodSection, reference: Reference | None) -> NextToken:
    return NextToken()
