"""Lay out documents as a micro-batch, and the collator, which reads those of rows of a split from the token store."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tailor.data.rows import Row, StreamSlice, examples_of
from tailor.data.split import Split
from tailor.models.documents import (
    IGNORED,
    STREAM_MULTIPLE,
    Documents,
    Layout,
    Pairs,
    SharedPrefixes,
    TokenBatch,
)
from tailor.models.neftune import Noise, noisy_documents
from tailor.models.pose import SkippedPositions
from tailor.models.sequence import SequenceGroup


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
    other. reference: float32[examples], for `TokenBatch.reference`. step: the training step that reads. sequence: the workers that a stream is split over.
    noise_alpha: NEFTune's alpha for the rows of training steps; seed: of the run, for this noise. pose: draws the position ids
    of the rows of training steps; None for plain ones. share_prefixes: compute the tokens that both answers of a pair begin with
    once, which needs a split of pairs.
    """

    split: Split
    layout: Layout
    max_length: int = 0
    packs: bool = True
    reference: np.ndarray | None = None
    step: int | None = None
    sequence: SequenceGroup | None = None
    noise_alpha: float = 0.0
    seed: int = 0
    pose: SkippedPositions | None = None
    share_prefixes: bool = False

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
        parts = 1 if self.sequence is None else self.sequence.size
        batch = collate(packs, self.layout, parts=parts, share_prefixes=self.share_prefixes)
        batch = replace(batch, step=self.step)
        return batch if self.sequence is None else batch.cut(self.sequence)

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


def numbers_of(row: Row) -> Sequence[int]:
    """A number for each document of a row, which identifies it within a step: the index of its example, or its start in a
    stream of joined examples."""
    return [row.start] if isinstance(row, StreamSlice) else row


def document(split: Split, index: int) -> Document:
    """An example of the token store as a document with targets."""
    example = split.example(index)
    ids = np.asarray(example.input_ids, dtype=np.int64)
    return Document(ids, targets_of(ids, example.spans), example.is_positive)


def _documents(split: Split, row: Row) -> list[Document]:
    """The examples of a row. A stream slice (pretraining with `method.documents: join`) is one document, joined from pieces of examples, in
    which every token predicts the next one."""
    if not isinstance(row, StreamSlice):
        return [document(split, example) for example in row]
    pieces = [split.example(example).input_ids[start:stop] for example, start, stop in row.pieces]
    tokens = np.concatenate(pieces).astype(np.int64)
    return [Document(tokens[:-1], tokens[1:])]


def collate(
    packs: Sequence[Sequence[Document]],
    layout: Layout,
    *,
    parts: int = 1,
    share_prefixes: bool = False,
) -> TokenBatch:
    """Lay documents out; each list of `packs` is one row. parts: T of a stream is a multiple of it. share_prefixes: in a stream, compute the common first tokens of documents 0 and 1, 2 and 3, … once."""
    members = [piece for pack in packs for piece in pack]
    if layout == "stream":
        return _stream(members, math.lcm(STREAM_MULTIPLE, parts), share_prefixes)
    width = max(sum(len(piece.ids) for piece in pack) for pack in packs)
    ids = np.zeros((len(packs), width), dtype=np.int64)  # [B, T]
    positions = np.zeros_like(ids)  # [B, T]
    token_document = np.full_like(ids, -1)  # [B, T]
    locations = []
    for index, pack in enumerate(packs):
        if len(pack) > 1 and any(piece.positions is not None for piece in pack):
            raise ValueError(
                "transformers' attention would start a new document at each skip of a packed one"
            )
        used = 0
        for piece in pack:
            end = used + len(piece.ids)
            ids[index, used:end], positions[index, used:end] = piece.ids, _positions(piece)
            token_document[index, used:end] = len(locations)
            locations.append(index * width + np.arange(used, end))
            used = end
        # transformers starts a new document wherever the position ids start at 0 again. After a single document the
        # positions of the padding continue, so that no mask is needed: causal attention does not look ahead. After a pack
        # they start at 0, which makes the padding a document of its own.
        start = 0 if len(pack) > 1 else used
        positions[index, used:] = np.arange(start, start + width - used)
    return _batch(ids, positions, token_document, None, members, locations)


def _stream(members: Sequence[Document], multiple: int, share_prefixes: bool) -> TokenBatch:
    """multiple: T is one of it."""
    lengths = [len(piece.ids) for piece in members]
    prefixes = _common_prefixes(members) if share_prefixes else [0] * len(members)
    if -(-(sum(lengths) - sum(prefixes)) // multiple) == -(-sum(lengths) // multiple):
        prefixes = [0] * len(members)  # the stream would not be shorter
    own = [length - prefix for length, prefix in zip(lengths, prefixes, strict=True)]
    used, padding = sum(own), -sum(own) % multiple
    starts = [0, *itertools.accumulate(own)]
    locations = [
        np.concatenate([starts[index - 1] + np.arange(prefix), np.arange(*starts[index : index + 2])])
        for index, prefix in enumerate(prefixes)
    ]  # int64[n] of each document
    pieces = list(zip(members, prefixes, strict=True))
    ids = np.concatenate([*(piece.ids[prefix:] for piece, prefix in pieces), np.zeros(padding, np.int64)])
    positions = np.concatenate(
        [*(_positions(piece)[prefix:] for piece, prefix in pieces), np.arange(padding)]
    )
    token_document = np.repeat([*range(len(members)), -1], [*own, padding])  # int64[T]
    cpu, rest = torch.device("cpu"), [padding] if padding else []
    documents = Documents.packed([*own, *rest], cpu)
    if any(prefixes):
        keys = torch.from_numpy(np.concatenate([*locations, np.arange(used, used + padding)]))
        documents = replace(documents, shared=SharedPrefixes(keys, Documents.packed([*lengths, *rest], cpu)))
    return _batch(ids[None], positions[None], token_document[None], documents, members, locations)


def _common_prefixes(members: Sequence[Document]) -> list[int]:
    """Of each document, the number of its first tokens that it shares with the one before; 0 for documents 0, 2, ….

    A document keeps at least one token of its own.
    """
    found = [0] * len(members)
    for index in range(1, len(members), 2):
        first, second = members[index - 1 : index + 1]
        if first.positions is None and second.positions is None:
            count = min(len(first.ids), len(second.ids)) - 1
            differences = np.flatnonzero(first.ids[:count] != second.ids[:count])
            found[index] = int(differences[0]) if len(differences) else count
    return found


def _positions(piece: Document) -> np.ndarray:
    """The position ids of a document, int64[n]."""
    return np.arange(len(piece.ids)) if piece.positions is None else piece.positions


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


def _batch(
    ids: np.ndarray,
    positions: np.ndarray,
    token_document: np.ndarray,
    documents: Documents | None,
    members: Sequence[Document],
    locations: Sequence[np.ndarray],
) -> TokenBatch:
    """locations: of each document, the positions of its tokens in the flattened [B · T], int64[n]."""
    supervised = [np.flatnonzero(piece.targets != IGNORED) for piece in members]  # int64[targets] each
    pieces = list(zip(members, locations, supervised, strict=True))
    predicting = np.concatenate([location[chosen] for _, location, chosen in pieces])  # int64[S]
    targets = np.concatenate([piece.targets[chosen] for piece, _, chosen in pieces])  # int64[S]
    counts = np.array([len(chosen) for chosen in supervised], dtype=np.int64)  # [D]
    document = np.repeat(np.arange(len(members)), counts)  # int64[S]
    is_positive = np.array([piece.is_positive for piece in members], dtype=np.bool_)  # [D]
    skips = any(piece.positions is not None for piece in members)
    tensor = torch.from_numpy
    return TokenBatch(
        tensor(ids),
        tensor(positions),
        tensor(predicting),
        tensor(targets),
        tensor(token_document),
        documents,
        tensor(document),
        tensor(counts),
        tensor(is_positive),
        skips=skips,
    )
