"""From hidden states to embeddings: pool, project, shorten and normalize, all in float32."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from tailor.models.documents import Pool

Pooling = Literal["mean", "weightedmean", "lasttoken", "cls"]


def pool(hidden: torch.Tensor, tokens: Pool, pooling: Pooling) -> torch.Tensor:
    """Pool hidden states [B, T, H] into one vector per text, float32[D, H].

    mean: mean of the pooled tokens. weightedmean: the n-th pooled token has weight n (SGPT, Muennighoff 2022, arXiv
    2202.08904). lasttoken: the last pooled token. cls: the text's first token, even if it is BOS or part of the format.
    """
    flat = hidden.flatten(0, 1)  # [B · T, H]
    if pooling == "cls":
        return flat.index_select(0, tokens.first).float()
    counts = torch.bincount(tokens.text, minlength=len(tokens.first))  # int64[D], pooled tokens
    ends = counts.cumsum(0)  # int64[D]
    if pooling == "lasttoken":
        return flat.index_select(0, tokens.positions[ends - 1]).float()
    # index_select: on a CPU, the backward pass of plain indexing adds one row at a time.
    states = flat.index_select(0, tokens.positions).float()  # [N, H]
    weights = torch.ones_like(tokens.text)  # int64[N]
    if pooling == "weightedmean":
        weights = torch.arange(1, len(weights) + 1, device=weights.device) - (ends - counts)[tokens.text]
    totals = torch.zeros_like(counts).index_add(0, tokens.text, weights)  # int64[D]
    shares = weights.float() / totals[tokens.text].float()  # float32[N]
    vectors = states.new_zeros(len(tokens.first), states.shape[-1])  # float32[D, H]
    return vectors.index_add(0, tokens.text, states * shares[:, None])


def finish(vectors: torch.Tensor, projection: nn.Linear | None) -> torch.Tensor:
    """Apply the projection, if there is one, to pooled vectors [D, H]: float32[D, dimension]."""
    with torch.autocast(vectors.device.type, enabled=False):
        return (
            vectors if projection is None else functional.linear(vectors, projection.weight, projection.bias)
        )


def shorten(vectors: torch.Tensor, dimension: int | None, *, normalize: bool) -> torch.Tensor:
    """Keep the first `dimension` numbers of each vector (Matryoshka, Kusupati et al. 2022, arXiv 2205.13147).

    vectors: [..., E]; returns float32[..., dimension], with L2 norm 1 if `normalize`.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        short = vectors if dimension is None else vectors[..., :dimension]
        return functional.normalize(short.float(), dim=-1) if normalize else short.float()


def new_projection(hidden: int, dimension: int, *, seed: int) -> nn.Linear:
    """A projection with PyTorch's initialization, the same on every worker. The state of the random generator is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(hidden, dimension)
