"""A micro-batch as the model takes it: documents end to end, and what each token must predict.

Two layouts hold the same tokens:

    stream   [1, T]  every document of the micro-batch in one row, filled up to a multiple of 64 with a
                     document that predicts nothing. For attention that follows the documents'
                     bounds, so its cost is that of the documents.
    rows     [B, L]  one row per pack, padded on the right. For stock attention, which masks a row
                     densely by its position ids.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from tailor.batches import Row
from tailor.tokens import Example

Layout = Literal["stream", "rows"]
IGNORED = -100
STREAM_MULTIPLE = 64
"""Tokens. Kernels are chosen (on a CPU compiled and kept) for each length that they meet, so few lengths are better."""


class HasExamples(Protocol):
    """A split of the token store, or what stands for one."""

    def example(self, index: int) -> Example: ...


@dataclass(frozen=True)
class Documents:
    """Where the documents of a stream lie: half-open bounds, in order, end to end."""

    bounds: tuple[tuple[int, int], ...]
    offsets: torch.Tensor
    """int32[documents + 1], the bounds as flash kernels take them."""
    longest: int


@dataclass(frozen=True)
class TokenBatch:
    """B rows of T tokens (one row for a stream)."""

    input_ids: torch.Tensor
    """int64[B, T]"""
    position_ids: torch.Tensor
    """int64[B, T], from 0 in each document."""
    predicting: torch.Tensor
    """int64[N]: the flat positions (of B × T) whose next token is supervised."""
    targets: torch.Tensor
    """int64[N]: those next tokens."""
    documents: Documents | None
    """Bounds, for the stream layout."""

    def to(self, device: torch.device) -> TokenBatch:
        documents = self.documents
        if documents is not None:
            documents = Documents(documents.bounds, documents.offsets.to(device), documents.longest)
        return TokenBatch(
            self.input_ids.to(device, non_blocking=True),
            self.position_ids.to(device, non_blocking=True),
            self.predicting.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            documents,
        )


def collate(
    split: HasExamples, rows: Sequence[Row], layout: Layout, *, pad_to: int | None = None
) -> TokenBatch:
    """Read the rows' examples and lay them out. `pad_to` fixes L of the rows layout, in tokens."""
    packs = [[_document(split, example) for example in row] for row in rows]
    if layout == "stream":
        pieces = [piece for pack in packs for piece in pack]
        if missing := -sum(len(piece[0]) for piece in pieces) % STREAM_MULTIPLE:
            nothing = np.full(missing, IGNORED, dtype=np.int64)
            pieces.append((np.zeros(missing, dtype=np.int64), np.arange(missing), nothing))
        ids, positions, targets = (np.concatenate(parts)[None] for parts in zip(*pieces, strict=True))
        lengths = np.array([len(piece[0]) for piece in pieces])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        bounds = tuple((int(a), int(b)) for a, b in itertools.pairwise(offsets))
        documents = Documents(bounds, torch.from_numpy(offsets.astype(np.int32)), int(lengths.max()))
        return _batch(ids, positions, targets, documents)
    joined = [tuple(np.concatenate(parts) for parts in zip(*pack, strict=True)) for pack in packs]
    width = max(pad_to or 0, max(len(row[0]) for row in joined))
    ids = np.zeros((len(joined), width), dtype=np.int64)
    targets = np.full_like(ids, IGNORED)
    positions = np.zeros_like(ids)
    for index, (row_ids, row_positions, row_targets) in enumerate(joined):
        used = len(row_ids)
        ids[index, :used], targets[index, :used] = row_ids, row_targets
        positions[index, :used] = row_positions
        # Causal attention never looks right, so padding that counts on is harmless; behind a pack
        # it starts at 0 again, which makes it a document of its own.
        start = 0 if len(packs[index]) > 1 else used
        positions[index, used:] = np.arange(start, start + width - used)
    return _batch(ids, positions, targets, None)


def _document(split: HasExamples, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    example = split.example(index)
    ids = np.asarray(example.input_ids, dtype=np.int64)
    targets = np.full_like(ids, IGNORED)
    for start, end in example.spans:
        # Token t is predicted at t - 1; the first token of a document has nothing before it.
        start = max(int(start), 1)
        targets[start - 1 : end - 1] = ids[start:end]
    return ids, np.arange(len(ids)), targets


def _batch(
    ids: np.ndarray, positions: np.ndarray, targets: np.ndarray, documents: Documents | None
) -> TokenBatch:
    predicting = np.flatnonzero(targets != IGNORED)
    arrays = (ids, positions, predicting, targets.reshape(-1)[predicting])
    return TokenBatch(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays), documents)
