"""The chunks in which the texts of a GRIT batch are embedded: where they are cut, their embeddings and the gradients of these.

Shapes: see `tailor.models`; N texts of the batch, and E numbers per embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from tailor.data.grit_batches import GritBatch
from tailor.methods.base import MicroBatch
from tailor.models.causal import CausalModel
from tailor.models.documents import TokenBatch
from tailor.models.embedding.embedder import embed_to_train
from tailor.models.embedding.settings import Embedding


def cut(lengths: Sequence[int], size: int | None, tokens: int) -> list[slice]:
    """Split texts into chunks of `size` texts or, if that is None, of at most `tokens` tokens.

    A text longer than `tokens` is a chunk of its own. lengths: in tokens, longest first.
    """
    if size is not None:
        return [slice(first, min(first + size, len(lengths))) for first in range(0, len(lengths), size)]
    found: list[slice] = []
    start = filled = 0
    for number, length in enumerate(lengths):
        if number > start and filled + length > tokens:
            found.append(slice(start, number))
            start, filled = number, 0
        filled += length
    return [*found, slice(start, len(lengths))] if lengths else []


def scatter_by_text(
    batch: GritBatch, texts: Sequence[MicroBatch], parts: Sequence[torch.Tensor]
) -> torch.Tensor:
    """[N, E]: this worker's embeddings at their text's index in the batch, and zeros for the texts of other workers.

    parts: [texts of the chunk, E] each.
    """
    pairs = list(zip(texts, parts, strict=True))
    local = [(micro.batch.pool, part) for micro, part in pairs if not micro.is_padding]
    vectors = parts[0].new_zeros(batch.texts, parts[0].shape[1])  # [N, E]
    if local:
        index = torch.cat([pool.text_index for pool, _ in local if pool is not None]).to(vectors.device)
        vectors = vectors.index_copy(0, index, torch.cat([part for _, part in local]))
    # Times 0: padding stays in the graph, because every worker must reduce a gradient for every weight.
    return vectors + 0.0 * sum(part.sum() for micro, part in pairs if micro.is_padding)


def gradient_of(micro: MicroBatch, gradient: torch.Tensor) -> torch.Tensor:
    """[texts of the chunk, E]: the rows of `gradient` [N, E] that belong to a micro-batch; zeros for padding."""
    assert micro.batch.pool is not None
    return gradient[micro.batch.pool.text_index.to(gradient.device)] * float(not micro.is_padding)


def embed_chunks(
    model: CausalModel, settings: Embedding, batches: Sequence[TokenBatch], seeds: Sequence[int], unit: float
) -> list[tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]]:
    """`embed_to_train` of each chunk, under activation checkpointing."""

    def seeded(batch: TokenBatch, seed: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        torch.manual_seed(seed)  # also in the recomputation, which must draw the same dropout
        return embed_to_train(model, settings, batch, unit)

    options: Any = {"use_reentrant": False, "preserve_rng_state": False}
    return [checkpoint(seeded, batch, seed, **options) for batch, seed in zip(batches, seeds, strict=True)]
