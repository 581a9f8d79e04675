"""Log-likelihoods of the scored tokens of sequences under a loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tailor.evaluate.rows import Scored
from tailor.models import rope
from tailor.models.attention import stock_attention
from tailor.models.beacon.model import beacon_model
from tailor.models.beacon.modules import beacons_of
from tailor.models.causal import CausalModel, base_of
from tailor.models.collator import Document, collate, targets_of
from tailor.models.loss import summed_cross_entropy_and_hits
from tailor.models.probe import head_is_separate


@dataclass(frozen=True)
class Likelihood:
    """Sums over the scored tokens of one sequence.

    loss: negative log-likelihood in nats. hits: tokens that are the model's top-1 prediction. tokens: their number.
    """

    loss: float
    hits: int
    tokens: int


def batches(sequences: Sequence[Scored], batch_size: int) -> list[list[int]]:
    """The indexes of the sequences of each batch, sorted by length, which keeps padding small."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@torch.no_grad()
def scoring_model(network: Any) -> CausalModel:
    """Wrap a loaded network (a transformers model or PEFT's wrapper) for `likelihoods`."""
    base = base_of(network)
    if base.config._attn_implementation not in ("sdpa", "eager"):
        base.set_attn_implementation(stock_attention(base))
    if beacons_of(base) is not None:
        return beacon_model(network.eval())
    model = CausalModel(network.eval(), layout="rows")
    model.splits_head = head_is_separate(model, next(network.parameters()).device)
    return model


@torch.no_grad()
def likelihoods(model: CausalModel, sequences: Sequence[Scored]) -> list[Likelihood]:
    """The likelihood of each sequence, in order, from one forward pass.

    Models whose RoPE frequencies depend on the batch's longest sequence (dynamic NTK, LongRoPE) take one pass each.
    """
    if len(sequences) > 1 and rope.follows_length(model.base):
        return [found for one in sequences for found in likelihoods(model, [one])]
    device = next(model.parameters()).device
    batch = collate([[_document(one)] for one in sequences], "rows").to(device)
    states, head, targets = model.at_predictions(batch)  # [S, H], _, [S]
    found = []
    for index in range(len(sequences)):
        own = batch.document == index  # [S]
        loss, hits = summed_cross_entropy_and_hits(states[own], head, targets[own])
        found.append(Likelihood(loss.item(), int(hits.item()), int(own.sum().item())))
    return found


def _document(one: Scored) -> Document:
    ids = np.array(one.ids, np.int64)
    return Document(ids, targets_of(ids, np.array(one.spans, np.int64).reshape(-1, 2)))
