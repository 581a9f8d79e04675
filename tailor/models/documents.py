"""A micro-batch as the model takes it: documents end to end, and what each token must predict.

Two layouts hold the same tokens:

    stream   [1, T]  every document of the micro-batch in one row, filled up to a multiple of 64 with a
                     document that predicts nothing. For attention that follows the documents'
                     bounds, so its cost is that of the documents. May be cut over several workers.
    rows     [B, L]  one row per pack, padded on the right. For stock attention, which masks a row
                     densely by its position ids.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from tailor.data.rows import Row, StreamSlice, examples_of
from tailor.data.token_store import Split
from tailor.models.sequence import SequenceGroup

Layout = Literal["stream", "rows"]
IGNORED = -100
STREAM_MULTIPLE = 64
"""Tokens. Kernels are chosen (on a CPU compiled and kept) for each length that they meet, so few lengths are better."""


@dataclass(frozen=True)
class Documents:
    """Where the documents of a stream lie: half-open bounds, in order, end to end."""

    bounds: tuple[tuple[int, int], ...]
    offsets: torch.Tensor
    """int32[documents + 1], the bounds as flash kernels take them."""
    longest: int
    sequence: SequenceGroup | None = None
    """The workers that the stream is cut over. The bounds are those of the whole stream."""


@dataclass(frozen=True)
class Pool:
    """Which tokens of a micro-batch become the embeddings of its D texts, and where these belong."""

    positions: torch.Tensor
    """int64[N]: flat positions (of B × T) of the pooled tokens, text by text. Instruction, BOS and format are left out."""
    text: torch.Tensor
    """int64[N]: the number of each one's text in the micro-batch."""
    first: torch.Tensor
    """int64[D]: flat positions of the texts' first tokens, whatever they are."""
    text_index: torch.Tensor
    """int64[D]: the number of each text among all texts of the batch."""

    def to(self, device: torch.device) -> Pool:
        parts = (self.positions, self.text, self.first, self.text_index)
        return Pool(*(part.to(device, non_blocking=True) for part in parts))


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
    rows: torch.Tensor
    """int64[B, T]: the number of each token's row in the micro-batch; -1 for what fills up."""
    documents: Documents | None
    """Bounds, for the stream layout."""
    document: torch.Tensor
    """int64[N]: the number, from 0, of the document that each target stands in."""
    supervised: torch.Tensor
    """int64[D]: targets of each document."""
    is_positive: torch.Tensor
    """bool[D]: False for an answer to avoid."""
    reference: torch.Tensor | None = None
    """float32[D]: log-probabilities of the documents under a reference model, where they were computed before."""
    kl_batch: TokenBatch | None = None
    """The same prompts with answers to other ones, where the method asks for them."""
    step: int | None = None
    """The training step that reads it, from 0; None in evaluation."""
    pool: Pool | None = None
    """For texts to embed. They predict nothing, and each is a row of its own in the rows layout."""

    def to(self, device: torch.device) -> TokenBatch:
        documents = self.documents
        if documents is not None:
            documents = replace(documents, offsets=documents.offsets.to(device))

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        return TokenBatch(
            moved(self.input_ids),
            moved(self.position_ids),
            moved(self.predicting),
            moved(self.targets),
            moved(self.rows),
            documents,
            moved(self.document),
            moved(self.supervised),
            moved(self.is_positive),
            None if self.reference is None else moved(self.reference),
            None if self.kl_batch is None else self.kl_batch.to(device),
            self.step,
            None if self.pool is None else self.pool.to(device),
        )

    def cut(self, sequence: SequenceGroup) -> TokenBatch:
        """One worker's part of a stream of documents: its tokens, and what these predict."""
        assert self.documents is not None
        start, stop = sequence.span(self.input_ids.shape[1])
        own = (self.predicting >= start) & (self.predicting < stop)
        return replace(
            self,
            input_ids=self.input_ids[:, start:stop],
            position_ids=self.position_ids[:, start:stop],
            predicting=self.predicting[own] - start,
            targets=self.targets[own],
            rows=self.rows[:, start:stop],
            documents=replace(self.documents, sequence=sequence),
            document=self.document[own],
        )


@dataclass(frozen=True)
class Document:
    """One document as numbers. ids: int64[n]; targets: int64[n], the token that each one must predict, or IGNORED."""

    ids: np.ndarray
    targets: np.ndarray
    is_positive: bool = True


@dataclass(frozen=True)
class Collator:
    """Reads rows of a split and lays them out.

    packs: whether a row's examples may lie in one row of the layout; where not, each is a row of its own (a
    model whose packed documents see each other still takes pairs). pad_to: fixes L of the rows layout, in
    tokens. max_length: longest document that may be made. reference: float32[n], a number of each example for
    `TokenBatch.reference`. step: the training step that reads. sequence: the workers that a stream is cut over.
    """

    split: Split
    layout: Layout
    max_length: int = 0
    packs: bool = True
    pad_to: int | None = None
    reference: np.ndarray | None = None
    step: int | None = None
    sequence: SequenceGroup | None = None

    def __call__(self, rows: Sequence[Row]) -> TokenBatch:
        """The rows' examples, in order."""
        batch = self.lay_out([_documents(self.split, row) for row in rows])
        if self.reference is None:
            return batch
        values = self.reference[[example for row in rows for example in examples_of(row)]]
        return replace(batch, reference=torch.from_numpy(values.astype(np.float32)))

    def lay_out(self, packs: Sequence[Sequence[Document]]) -> TokenBatch:
        """Documents that were made elsewhere, one row each list."""
        if not self.packs:
            packs = [[piece] for pack in packs for piece in pack]
        if self.sequence is None:
            return replace(collate(packs, self.layout, pad_to=self.pad_to), step=self.step)
        return collate(packs, self.layout, parts=self.sequence.size).cut(self.sequence)


def collate(
    packs: Sequence[Sequence[Document]], layout: Layout, *, pad_to: int | None = None, parts: int = 1
) -> TokenBatch:
    """Lay documents out. `pad_to` fixes L of the rows layout, in tokens; `parts` divides T of the stream."""
    members = [piece for pack in packs for piece in pack]
    numbers = [np.full(sum(len(piece.ids) for piece in pack), at) for at, pack in enumerate(packs)]
    if layout == "stream":
        pieces = list(members)
        if missing := -sum(len(piece.ids) for piece in pieces) % math.lcm(STREAM_MULTIPLE, parts):
            nothing = np.full(missing, IGNORED, dtype=np.int64)
            pieces.append(Document(np.zeros(missing, dtype=np.int64), nothing))
            numbers.append(np.full(missing, -1))
        lengths = np.array([len(piece.ids) for piece in pieces])
        ids, targets = (
            np.concatenate(parts)[None] for parts in zip(*((p.ids, p.targets) for p in pieces), strict=True)
        )
        positions = np.concatenate([np.arange(length) for length in lengths])[None]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        bounds = tuple((int(a), int(b)) for a, b in itertools.pairwise(offsets))
        documents = Documents(bounds, torch.from_numpy(offsets.astype(np.int32)), int(lengths.max()))
        return _batch(ids, positions, targets, np.concatenate(numbers)[None], documents, members)
    width = max(pad_to or 0, *(sum(len(piece.ids) for piece in pack) for pack in packs))
    ids = np.zeros((len(packs), width), dtype=np.int64)
    targets = np.full_like(ids, IGNORED)
    positions = np.zeros_like(ids)
    places = np.full_like(ids, -1)
    for index, pack in enumerate(packs):
        used = 0
        for piece in pack:
            end = used + len(piece.ids)
            ids[index, used:end], targets[index, used:end] = piece.ids, piece.targets
            positions[index, used:end] = np.arange(len(piece.ids))
            used = end
        places[index, :used] = index
        # Causal attention never looks right, so padding that counts on is harmless; behind a pack
        # it starts at 0 again, which makes it a document of its own.
        start = 0 if len(pack) > 1 else used
        positions[index, used:] = np.arange(start, start + width - used)
    return _batch(ids, positions, targets, places, None, members)


def document(split: Split, index: int) -> Document:
    """An example of the store, with the token that each of its tokens must predict."""
    example = split.example(index)
    ids = np.asarray(example.input_ids, dtype=np.int64)
    return Document(ids, targets_of(ids, example.spans), bool(split.is_positive[index]))


def targets_of(ids: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Token t is predicted at t - 1; the first token of a document has nothing before it."""
    targets = np.full_like(ids, IGNORED)
    for start, end in spans:
        start = max(int(start), 1)
        targets[start - 1 : end - 1] = ids[start:end]
    return targets


def _documents(split: Split, row: Row) -> list[Document]:
    """A row's examples; a stretch is one document, whatever it is joined of, and every token predicts the next one."""
    if not isinstance(row, StreamSlice):
        return [document(split, example) for example in row]
    pieces = [split.example(example).input_ids[start:stop] for example, start, stop in row.pieces]
    tokens = np.concatenate(pieces).astype(np.int64)
    return [Document(tokens[:-1], tokens[1:])]


def _batch(
    ids: np.ndarray,
    positions: np.ndarray,
    targets: np.ndarray,
    rows: np.ndarray,
    documents: Documents | None,
    members: Sequence[Document],
) -> TokenBatch:
    predicting = np.flatnonzero(targets != IGNORED)
    supervised = np.array([(piece.targets != IGNORED).sum() for piece in members], dtype=np.int64)
    number = np.repeat(np.arange(len(members)), supervised)
    is_positive = np.array([piece.is_positive for piece in members], dtype=np.bool_)
    ids, positions, predicting, targets, rows, number, supervised, is_positive = (
        torch.from_numpy(np.ascontiguousarray(array))
        for array in (
            ids,
            positions,
            predicting,
            targets.reshape(-1)[predicting],
            rows,
            number,
            supervised,
            is_positive,
        )
    )
    return TokenBatch(ids, positions, predicting, targets, rows, documents, number, supervised, is_positive)
