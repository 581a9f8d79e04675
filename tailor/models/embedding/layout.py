"""A micro-batch of texts to embed: laid out as documents, with the tokens that are pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from tailor.errors import DataError
from tailor.models.documents import IGNORED, Document, Layout, Pool, TokenBatch, collate


def lay_out_texts(
    texts: Sequence[tuple[np.ndarray, np.ndarray]], layout: Layout, text_index: Sequence[int] | None = None
) -> TokenBatch:
    """Lay texts out: (ids int[n], half-open spans int[k, 2] of the tokens that are pooled) of each.

    text_index: where the texts stand among all of the batch, by default their numbers here. DataError when a text has
    nothing to pool.
    """
    numbers = range(len(texts)) if text_index is None else text_index
    documents = [
        Document(np.asarray(ids, np.int64), np.full(len(ids), IGNORED, dtype=np.int64)) for ids, _ in texts
    ]
    batch = collate([[one] for one in documents], layout)
    if batch.documents is not None:
        starts = [start for start, _ in batch.documents.bounds[: len(texts)]]
    else:
        starts = [row * batch.input_ids.shape[1] for row in range(len(texts))]
    pooled = [
        np.concatenate([np.arange(a, b) for a, b in np.asarray(spans).reshape(-1, 2)] or [np.zeros(0, int)])
        for _, spans in texts
    ]
    if empty := [number for number, own in zip(numbers, pooled, strict=True) if not len(own)]:
        raise DataError(f"text {empty[0]} is empty: no token of it would be pooled", hint="leave it out")
    pool = Pool(
        positions=torch.from_numpy(
            np.concatenate([at + own for at, own in zip(starts, pooled, strict=True)])
        ),
        text=torch.from_numpy(np.repeat(np.arange(len(texts)), [len(own) for own in pooled])),
        first=torch.tensor(starts, dtype=torch.int64),
        text_index=torch.tensor(list(numbers), dtype=torch.int64),
    )
    return replace(batch, pool=pool)
