"""Lay out a micro-batch of texts to embed, with the positions of the tokens to pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from tailor.errors import DataError
from tailor.models.collator import Document, collate
from tailor.models.documents import IGNORED, Layout, Pool, TokenBatch


def lay_out_texts(
    texts: Sequence[tuple[np.ndarray, np.ndarray]], layout: Layout, text_index: Sequence[int] | None = None
) -> TokenBatch:
    """Lay out D texts, given as (token ids int[n], spans int[k, 2] of the tokens to pool, each start to stop).

    text_index: index of each text among all texts of the batch, by default 0 to D - 1. DataError if a text has no token to
    pool.
    """
    numbers = range(len(texts)) if text_index is None else text_index
    documents = [
        Document(np.asarray(ids, np.int64), np.full(len(ids), IGNORED, dtype=np.int64)) for ids, _ in texts
    ]
    batch = collate([[document] for document in documents], layout)  # one text per row
    if batch.documents is not None:
        starts = [start for start, _ in batch.documents.bounds[: len(texts)]]
    else:
        starts = [row * batch.input_ids.shape[1] for row in range(len(texts))]
    # Of each text: positions to pool, in order, counted from its first token.
    pooled = [
        np.sort(
            np.concatenate(
                [np.arange(a, b) for a, b in np.asarray(spans).reshape(-1, 2)] or [np.zeros(0, int)]
            )
        )
        for _, spans in texts
    ]
    if empty := [number for number, tokens in zip(numbers, pooled, strict=True) if not len(tokens)]:
        raise DataError(f"text {empty[0]} is empty: it has no token to pool", hint="remove the text")
    pool = Pool(
        positions=torch.from_numpy(
            np.concatenate([start + tokens for start, tokens in zip(starts, pooled, strict=True)])
        ),  # int64[N]
        text=torch.from_numpy(
            np.repeat(np.arange(len(texts)), [len(tokens) for tokens in pooled])
        ),  # int64[N]
        first=torch.tensor(starts, dtype=torch.int64),  # [D]
        text_index=torch.tensor(list(numbers), dtype=torch.int64),  # [D]
    )
    return replace(batch, pool=pool)
