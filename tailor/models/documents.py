"""A micro-batch as the model takes it: token ids of packed documents, position ids and targets.

Two layouts hold the same tokens:

    stream   [1, T]  all documents of the micro-batch in one row, padded to a multiple of 64 tokens with a document
                     without targets. For `tailor_documents` attention, which follows the documents' bounds. Sequence
                     parallelism splits a stream over several workers.
    rows     [B, T]  one row per pack, padded on the right. For transformers' own attention, which finds the documents
                     of a row by its position ids and masks with a dense T × T mask.
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
from tailor.data.split import Split
from tailor.models.neftune import Noise, noisy_documents
from tailor.models.pose import SkippedPositions
from tailor.models.sequence import SequenceGroup

Layout = Literal["stream", "rows"]
IGNORED = -100
"""Target of a token that is not supervised, as in PyTorch's `cross_entropy`."""
STREAM_MULTIPLE = 64
"""Tokens. Kernels are selected for each new length (on a CPU compiled and cached), so few different lengths are faster."""


@dataclass(frozen=True)
class Documents:
    """Bounds of the documents in a stream. They follow each other without gaps."""

    bounds: tuple[tuple[int, int], ...]
    """(start, stop) of each document, padding included."""
    offsets: torch.Tensor
    """int32[documents + 1]: the bounds as flash attention takes them (`cu_seqlens`)."""
    longest: int
    """Tokens of the longest document."""
    sequence: SequenceGroup | None = None
    """The workers that the stream is split over, if any. The bounds are always those of the whole stream."""

    @classmethod
    def packed(cls, lengths: Sequence[int], device: torch.device) -> Documents:
        """Documents of these lengths, in tokens, one after another."""
        offsets = [0, *itertools.accumulate(lengths)]
        bounds = tuple(itertools.pairwise(offsets))
        return cls(bounds, torch.tensor(offsets, dtype=torch.int32, device=device), max(lengths))

    def chunks(self, size: int) -> Documents:
        """Each document cut into pieces of `size` tokens from its start, the last one shorter."""
        made: dict[int, Documents] = vars(self).setdefault("_chunks", {})  # for all layers with such chunks
        if size not in made:
            starts = [(start, end) for first, end in self.bounds for start in range(first, end, size)]
            bounds = tuple((start, min(start + size, end)) for start, end in starts)
            offsets = torch.tensor(
                [0, *(end for _, end in bounds)], dtype=torch.int32, device=self.offsets.device
            )
            made[size] = Documents(bounds, offsets, min(size, self.longest))
        return made[size]


@dataclass(frozen=True)
class Pool:
    """Which tokens of a micro-batch are pooled into the embeddings of its D texts. N is the number of pooled tokens."""

    positions: torch.Tensor
    """int64[N]: positions of the pooled tokens in the flattened [B · T], text by text. Instruction, BOS and format tokens are
    not pooled."""
    text: torch.Tensor
    """int64[N]: index in the micro-batch of each token's text."""
    first: torch.Tensor
    """int64[D]: flattened position of each text's first token, pooled or not."""
    text_index: torch.Tensor
    """int64[D]: index of each text among all texts of the batch."""

    def to(self, device: torch.device) -> Pool:
        parts = (self.positions, self.text, self.first, self.text_index)
        return Pool(*(part.to(device, non_blocking=True) for part in parts))


@dataclass(frozen=True)
class Pairs:
    """Pairs of a query and a passage to score, D of R queries. Each pair is a row of its own (B = D)."""

    token_types: torch.Tensor
    """int64[D, T]"""
    group: torch.Tensor
    """int64[D]: index in the micro-batch of each pair's query."""
    compared: torch.Tensor
    """int64[R, G]: the pairs of each query that the loss compares, that of a positive passage first."""
    teacher: torch.Tensor
    """float32[R, G]: a teacher's scores of these pairs; NaN without one."""

    def to(self, device: torch.device) -> Pairs:
        parts = (self.token_types, self.group, self.compared, self.teacher)
        return Pairs(*(part.to(device, non_blocking=True) for part in parts))


@dataclass(frozen=True)
class TokenBatch:
    """A micro-batch: B rows of T tokens (B = 1 for a stream), D documents, S supervised tokens. Padding is no document."""

    input_ids: torch.Tensor
    """int64[B, T]"""
    position_ids: torch.Tensor
    """int64[B, T], from 0 in each document. They rise by 1 from token to token, except with PoSE."""
    predicting: torch.Tensor
    """int64[S]: positions in the flattened [B · T] whose next token is supervised."""
    targets: torch.Tensor
    """int64[S]: these next tokens."""
    rows: torch.Tensor
    """int64[B, T]: index in the micro-batch of each token's row (pack); -1 for padding."""
    documents: Documents | None
    """The documents' bounds in the stream layout; None in the rows layout."""
    document: torch.Tensor
    """int64[S]: index, from 0, of the document of each target."""
    supervised: torch.Tensor
    """int64[D]: number of targets of each document."""
    is_positive: torch.Tensor
    """bool[D]: False for a rejected or undesirable answer."""
    reference: torch.Tensor | None = None
    """float32[D]: log-probabilities of the documents under the reference model, if they were computed before training."""
    kl_batch: TokenBatch | None = None
    """For KTO: the same prompts, each with the answer to another prompt."""
    step: int | None = None
    """The training step, from 0; None in evaluation."""
    pool: Pool | None = None
    """For texts to embed, which have no targets. In the rows layout each text is a row of its own."""
    noise: Noise | None = None
    """Noise on the embedded tokens; None without NEFTune and in evaluation."""
    skips: bool = False
    """Whether the position ids skip within documents (PoSE), so that they do not show where a document ends."""
    pairs: Pairs | None = None
    """For pairs of texts to score, which have no targets."""

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
            self.noise,
            self.skips,
            None if self.pairs is None else self.pairs.to(device),
        )

    def cut(self, sequence: SequenceGroup) -> TokenBatch:
        """One worker's part of a stream: its tokens [1, T / N], and the targets of these tokens."""
        assert self.documents is not None
        start, stop = sequence.span(self.input_ids.shape[1])
        inside = (self.predicting >= start) & (self.predicting < stop)  # bool[S]
        return replace(
            self,
            input_ids=self.input_ids[:, start:stop],
            position_ids=self.position_ids[:, start:stop],
            predicting=self.predicting[inside] - start,
            targets=self.targets[inside],
            rows=self.rows[:, start:stop],
            documents=replace(self.documents, sequence=sequence),
            document=self.document[inside],
        )


@dataclass(frozen=True)
class Document:
    """One document of n tokens. ids: int64[n]; targets: int64[n], the token that each token must predict, or IGNORED.

    positions: int64[n], its position ids; None for 0 to n - 1.
    """

    ids: np.ndarray
    targets: np.ndarray
    is_positive: bool = True
    positions: np.ndarray | None = None


@dataclass(frozen=True)
class Collator:
    """Reads rows of a split and lays them out as a micro-batch.

    max_length: maximum tokens of a document that a method builds. packs: whether the examples of a batch row share a row
    of the layout. If False, each gets its own row, so that pairs also train a model whose packed documents attend to each
    other. pad_to: fixed T of the rows layout, for compiled models. reference: float32[examples], for
    `TokenBatch.reference`. step: the training step that reads. sequence: the workers that a stream is split over.
    noise_alpha: NEFTune's alpha for the rows of training steps; seed: of the run, for this noise. pose: draws the position ids
    of the rows of training steps; None for plain ones.
    """

    split: Split
    layout: Layout
    max_length: int = 0
    packs: bool = True
    pad_to: int | None = None
    reference: np.ndarray | None = None
    step: int | None = None
    sequence: SequenceGroup | None = None
    noise_alpha: float = 0.0
    seed: int = 0
    pose: SkippedPositions | None = None

    def __call__(self, rows: Sequence[Row]) -> TokenBatch:
        """Lay out the examples of some rows, in order."""
        packs = [_documents(self.split, row) for row in rows]
        if self.pose is not None and self.step is not None:
            packs = [
                [
                    replace(piece, positions=self.pose.draw(self.step, number, len(piece.ids)))
                    for number, piece in zip(numbers_of(row), pack, strict=True)
                ]
                for row, pack in zip(rows, packs, strict=True)
            ]
        batch = self.lay_out(packs)
        if self.noise_alpha and self.step is not None:
            batch = replace(batch, noise=self._noise(rows, packs, batch.input_ids.shape[1]))
        if self.reference is None:
            return batch
        values = self.reference[[example for row in rows for example in examples_of(row)]]
        return replace(batch, reference=torch.from_numpy(values.astype(np.float32)))

    def lay_out(self, packs: Sequence[Sequence[Document]]) -> TokenBatch:
        """Lay out documents that a method has built; each list is one row."""
        packs = self._rows(packs)
        if self.sequence is None:
            return replace(collate(packs, self.layout, pad_to=self.pad_to), step=self.step)
        return collate(packs, self.layout, parts=self.sequence.size).cut(self.sequence)

    def _rows(self, packs: Sequence[Sequence[Document]]) -> Sequence[Sequence[Document]]:
        """The documents of each row of the layout."""
        return packs if self.packs else [[piece] for pack in packs for piece in pack]

    def _noise(self, rows: Sequence[Row], packs: Sequence[Sequence[Document]], width: int) -> Noise:
        """The noise of a micro-batch that `lay_out` made from `packs`. width: T, of this worker."""
        numbers = [number for row in rows for number in numbers_of(row)]
        lengths = [[len(piece.ids) for piece in pack] for pack in self._rows(packs)]
        parts = 1 if self.sequence is None else self.sequence.size
        before = 0 if self.sequence is None else self.sequence.span(width * parts)[0]
        assert self.step is not None
        documents = noisy_documents(numbers, lengths, width if self.layout == "rows" else None, before)
        return Noise(self.noise_alpha, self.seed, self.step, documents)


def lay_out_pairs(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> TokenBatch:
    """Lay out pairs of texts to score, a row each, as one group without a loss. pairs: token ids and token types, int[n] each."""
    documents = [
        Document(np.asarray(ids, np.int64), np.full(len(ids), IGNORED, np.int64)) for ids, _ in pairs
    ]
    batch = collate([[document] for document in documents], "rows")
    types = np.zeros(tuple(batch.input_ids.shape), np.int64)  # [D, T]
    for row, (_, own) in enumerate(pairs):
        types[row, : len(own)] = own
    nothing = torch.zeros(0, 0)
    return replace(
        batch,
        pairs=Pairs(torch.from_numpy(types), torch.zeros(len(pairs)).long(), nothing.long(), nothing),
    )


def collate(
    packs: Sequence[Sequence[Document]], layout: Layout, *, pad_to: int | None = None, parts: int = 1
) -> TokenBatch:
    """Lay documents out; each list of `packs` is one row. pad_to: fixed T of the rows layout. parts: T of a stream is a
    multiple of it."""
    members = [piece for pack in packs for piece in pack]
    numbers = [np.full(sum(len(piece.ids) for piece in pack), row) for row, pack in enumerate(packs)]
    if layout == "stream":
        pieces = list(members)
        if missing := -sum(len(piece.ids) for piece in pieces) % math.lcm(STREAM_MULTIPLE, parts):
            no_targets = np.full(missing, IGNORED, dtype=np.int64)
            pieces.append(Document(np.zeros(missing, dtype=np.int64), no_targets))
            numbers.append(np.full(missing, -1))
        lengths = np.array([len(piece.ids) for piece in pieces])  # int64[documents], with the padding
        ids, targets = (
            np.concatenate(parts)[None] for parts in zip(*((p.ids, p.targets) for p in pieces), strict=True)
        )  # int64[1, T] each
        positions = np.concatenate([_positions(piece) for piece in pieces])[None]  # int64[1, T]
        offsets = np.concatenate([[0], np.cumsum(lengths)])  # int64[documents + 1]
        bounds = tuple((int(a), int(b)) for a, b in itertools.pairwise(offsets))
        documents = Documents(bounds, torch.from_numpy(offsets.astype(np.int32)), int(lengths.max()))
        return _batch(ids, positions, targets, np.concatenate(numbers)[None], documents, members)
    width = max(pad_to or 0, *(sum(len(piece.ids) for piece in pack) for pack in packs))
    ids = np.zeros((len(packs), width), dtype=np.int64)  # [B, T]
    targets = np.full_like(ids, IGNORED)  # [B, T]
    positions = np.zeros_like(ids)  # [B, T]
    rows = np.full_like(ids, -1)  # [B, T]
    for index, pack in enumerate(packs):
        if len(pack) > 1 and any(piece.positions is not None for piece in pack):
            raise ValueError(
                "transformers' attention would start a new document at each skip of a packed one"
            )
        used = 0
        for piece in pack:
            end = used + len(piece.ids)
            ids[index, used:end], targets[index, used:end] = piece.ids, piece.targets
            positions[index, used:end] = _positions(piece)
            used = end
        rows[index, :used] = index
        # transformers starts a new document wherever the position ids start at 0 again. After a single document the
        # positions of the padding continue, so that no mask is needed: causal attention does not look ahead. After a pack
        # they start at 0, which makes the padding a document of its own.
        start = 0 if len(pack) > 1 else used
        positions[index, used:] = np.arange(start, start + width - used)
    return _batch(ids, positions, targets, rows, None, members)


def _positions(piece: Document) -> np.ndarray:
    """The position ids of a document, int64[n]."""
    return np.arange(len(piece.ids)) if piece.positions is None else piece.positions


def numbers_of(row: Row) -> Sequence[int]:
    """A number for each document of a row, which identifies it within a step: the index of its example, or its start in a
    stream of joined examples."""
    return [row.start] if isinstance(row, StreamSlice) else row


def document(split: Split, index: int) -> Document:
    """An example of the token store as a document with targets."""
    example = split.example(index)
    ids = np.asarray(example.input_ids, dtype=np.int64)
    return Document(ids, targets_of(ids, example.spans), example.is_positive)


def targets_of(ids: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Targets of a document, int64[n]: position t - 1 predicts token t of a supervised span. A document's first token has
    no position before it and is never a target.

    ids: int64[n]; spans: int[k, 2], (start, stop) of the supervised tokens.
    """
    targets = np.full_like(ids, IGNORED)  # [n]
    for start, end in spans:
        start = max(int(start), 1)
        targets[start - 1 : end - 1] = ids[start:end]
    return targets


def _documents(split: Split, row: Row) -> list[Document]:
    """The examples of a row. A stream slice (pretraining with `method.documents: join`) is one document, joined from pieces of examples, in
    which every token predicts the next one."""
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
    predicting = np.flatnonzero(targets != IGNORED)  # int64[S]
    supervised = np.array([(piece.targets != IGNORED).sum() for piece in members], dtype=np.int64)  # [D]
    document = np.repeat(np.arange(len(members)), supervised)  # int64[S]
    is_positive = np.array([piece.is_positive for piece in members], dtype=np.bool_)  # [D]
    ids, positions, predicting, targets, rows, document, supervised, is_positive = (
        torch.from_numpy(np.ascontiguousarray(array))
        for array in (
            ids,
            positions,
            predicting,
            targets.reshape(-1)[predicting],
            rows,
            document,
            supervised,
            is_positive,
        )
    )
    skips = any(piece.positions is not None for piece in members)
    return TokenBatch(
        ids, positions, predicting, targets, rows, documents, document, supervised, is_positive, skips=skips
    )
