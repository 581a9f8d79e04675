"""Log-likelihoods of the scored tokens of sequences, by a loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tailor.batches import Row
from tailor.evaluate.rows import Scored
from tailor.models.attention import stock_attention
from tailor.models.causal import CausalModel, base_of
from tailor.models.documents import collate
from tailor.models.loss import summed_cross_entropy_and_hits
from tailor.models.probe import head_is_separate
from tailor.tokens import Example


@dataclass(frozen=True)
class Likelihood:
    """Of one sequence: the sum of its scored tokens' losses (nats), how many are the model's first choice, how many there are."""

    loss: float
    hits: int
    tokens: int


class _Examples:
    """Sequences in the place of a token store's split."""

    def __init__(self, sequences: Sequence[Scored]) -> None:
        self._sequences = sequences

    def example(self, index: int) -> Example:
        one = self._sequences[index]
        return Example(np.array(one.ids, np.int32), np.array(one.spans, np.int32).reshape(-1, 2))


def batches(sequences: Sequence[Scored], batch_size: int) -> list[list[int]]:
    """Which sequences go through the model together: those of like length, shortest first."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@torch.no_grad()
def scoring_model(network: Any) -> CausalModel:
    """A loaded network (transformers' model or PEFT's wrapper), ready for `likelihoods`."""
    base = base_of(network)
    if base.config._attn_implementation not in ("sdpa", "eager"):
        base.set_attn_implementation(stock_attention(base))
    model = CausalModel(network.eval(), layout="rows")
    model.splits_head = head_is_separate(model, next(network.parameters()).device)
    return model


@torch.no_grad()
def likelihoods(model: CausalModel, sequences: Sequence[Scored]) -> list[Likelihood]:
    """Of each sequence, in order, in one forward pass."""
    device = next(model.parameters()).device
    rows: list[Row] = [(index,) for index in range(len(sequences))]
    batch = collate(_Examples(sequences), rows, "rows").to(device)
    states, head, targets = model.at_predictions(batch)
    row_of = batch.predicting // batch.input_ids.shape[1]
    found = []
    for index in range(len(sequences)):
        own = row_of == index
        loss, hits = summed_cross_entropy_and_hits(states[own], head, targets[own])
        found.append(Likelihood(loss.item(), int(hits.item()), int(own.sum().item())))
    return found
