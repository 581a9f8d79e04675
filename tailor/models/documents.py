"""A micro-batch as the model takes it: token ids of packed documents, position ids and targets.

Two layouts hold the same tokens:

    stream   [1, T]  all documents of the micro-batch in one row, padded to a multiple of 64 tokens with a document
                     without targets. For `tailor_documents` attention, which follows the documents' bounds. Sequence
                     parallelism splits a stream over several workers. Two answers to a prompt can share its tokens.
    rows     [B, T]  one row per pack, padded on the right. For transformers' own attention, which finds the documents
                     of a row by its position ids and masks with a dense T × T mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import torch

from tailor.models.neftune import Noise
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
    shared: SharedPrefixes | None = None
    """Set if documents have their first tokens in common with another one. The bounds are then those of their own tokens."""

    @classmethod
    def packed(cls, lengths: Sequence[int], device: torch.device) -> Documents:
        """Documents of these lengths, in tokens, one after another."""
        offsets = [0, *itertools.accumulate(lengths)]
        bounds = tuple(itertools.pairwise(offsets))
        return cls(bounds, torch.tensor(offsets, dtype=torch.int32, device=device), max(lengths))

    @property
    def shared_tokens(self) -> int:
        """Number of tokens that belong to two documents."""
        return 0 if self.shared is None else self.shared.documents.bounds[-1][1] - self.bounds[-1][1]

    def chunks(self, size: int) -> Documents:
        """Each document cut into pieces of `size` tokens from its start, the last one shorter."""
        made: dict[int, Documents] = vars(self).setdefault("_chunks", {})  # for all layers with such chunks
        if size not in made:
            lengths = [
                min(size, end - start) for first, end in self.bounds for start in range(first, end, size)
            ]
            made[size] = Documents.packed(lengths, self.offsets.device)
        return made[size]


@dataclass(frozen=True)
class SharedPrefixes:
    """Whole documents of a stream in which some tokens belong to two documents, such as the prompt of a pair of answers."""

    keys: torch.Tensor
    """int64[K]: positions in the stream of the tokens of each document, one document after another."""
    documents: Documents
    """Bounds of the documents among these."""


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
    token_document: torch.Tensor
    """int64[B, T]: index in the micro-batch of each token's document; -1 for padding."""
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
        moved: TokenBatch = _moved(self, device)
        return moved

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
            token_document=self.token_document[:, start:stop],
            documents=replace(self.documents, sequence=sequence),
            document=self.document[inside],
        )


def _moved(value: Any, device: torch.device) -> Any:
    """A tensor on a device, or a dataclass whose tensors are."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{field.name: _moved(getattr(value, field.name), device) for field in fields(value)}
        )
    return value
