"""From hidden states to embeddings: pooled, projected, cut to a length and normalized, all in float32."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from tailor.models.documents import Pool

Pooling = Literal["mean", "weightedmean", "lasttoken", "cls"]


def pool(hidden: torch.Tensor, tokens: Pool, pooling: Pooling) -> torch.Tensor:
    """One vector for each text, float32[D, H], from hidden states [B, T, H].

    mean: of the pooled tokens. weightedmean: the n-th of them counts n times (Muennighoff 2022, arXiv 2202.08904).
    lasttoken: the last of them. cls: the text's first token, also where that is BOS or a part of the format.
    """
    flat = hidden.flatten(0, 1)
    if pooling == "cls":
        return flat.index_select(0, tokens.first).float()
    counts = torch.bincount(tokens.text, minlength=len(tokens.first))
    ends = counts.cumsum(0)
    if pooling == "lasttoken":
        return flat.index_select(0, tokens.positions[ends - 1]).float()
    # index_select, for the backward pass of plain indexing adds one row at a time on a CPU.
    states = flat.index_select(0, tokens.positions).float()
    weights = torch.ones_like(tokens.text)
    if pooling == "weightedmean":
        weights = torch.arange(1, len(weights) + 1, device=weights.device) - (ends - counts)[tokens.text]
    totals = torch.zeros_like(counts).index_add(0, tokens.text, weights)
    shares = weights.float() / totals[tokens.text].float()
    vectors = states.new_zeros(len(tokens.first), states.shape[-1])
    return vectors.index_add(0, tokens.text, states * shares[:, None])


def finish(vectors: torch.Tensor, projection: nn.Linear | None) -> torch.Tensor:
    """Pooled vectors [D, H], projected where there is a projection: float32[D, dimension]."""
    with torch.autocast(vectors.device.type, enabled=False):
        return (
            vectors if projection is None else functional.linear(vectors, projection.weight, projection.bias)
        )


def shorten(vectors: torch.Tensor, dimension: int | None, *, normalize: bool) -> torch.Tensor:
    """The first `dimension` numbers of each vector (Matryoshka, Kusupati et al. 2022), of length 1 if asked for."""
    with torch.autocast(vectors.device.type, enabled=False):
        cut = vectors if dimension is None else vectors[..., :dimension]
        return functional.normalize(cut.float(), dim=-1) if normalize else cut.float()


def new_projection(hidden: int, dimension: int, *, seed: int) -> nn.Linear:
    """A projection with PyTorch's own start, the same for every worker. Leaves the generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(hidden, dimension)
