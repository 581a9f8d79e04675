"""Attention by segments: one of the two segments of each document is bidirectional.

The segments are instruction and text, or prompt and answer. A token attends to the earlier tokens of its document. A token of the bidirectional segment also attends to the later tokens
of its own segment. If the first segment is bidirectional, this is a prefix LM (Raffel et al. 2020, arXiv 1910.10683).
Sliding windows apply as in the model's causal and bidirectional attention. Shapes: see `tailor.models`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from tailor.models import visibility
from tailor.models.documents import Documents, TokenBatch
from tailor.models.visibility import Rule

Segment = Literal["first", "rest"]


@dataclass(frozen=True)
class Part:
    """The queries of one segment of all documents, and the keys that they may attend to: the tokens up to its end."""

    causal: bool
    queries: torch.Tensor
    """int64[q]: positions in the stream."""
    keys: torch.Tensor
    """int64[k]: positions in the stream."""
    query_documents: Documents
    """Bounds of the documents among the queries. Documents without a query are left out."""
    key_documents: Documents
    """Bounds of the same documents among the keys."""


@dataclass(frozen=True)
class Segments:
    """The segments of the D documents of a micro-batch."""

    lengths: tuple[int, ...]
    """Tokens of each document's first segment."""
    bidirectional: Segment

    def parts(self, documents: Documents) -> tuple[list[Part], torch.Tensor]:
        """The two segments of a stream, and int64[T]: where each token of the stream is among the queries of both.

        The padding has no first segment.
        """
        known: dict[str, Any] = vars(
            self
        )  # for all layers: the documents of a micro-batch are always the same
        if "_parts" not in known:
            device = documents.offsets.device
            bounds = documents.bounds
            lengths = [*self.lengths, *(0 for _ in range(len(bounds) - len(self.lengths)))]
            firsts = [(a, a + n, a, a + n) for (a, _), n in zip(bounds, lengths, strict=True)]
            rests = [(a + n, b, a, b) for (a, b), n in zip(bounds, lengths, strict=True)]
            parts = [
                _part(spans, causal=self.bidirectional != segment, device=device)
                for segment, spans in (("first", firsts), ("rest", rests))
                if any(start < stop for start, stop, _, _ in spans)
            ]
            order = torch.cat([part.queries for part in parts]).argsort()
            known["_parts"] = parts, order
        found: tuple[list[Part], torch.Tensor] = known["_parts"]
        return found

    def mask(self, batch: TokenBatch, causal: Rule, bidirectional: Rule) -> torch.Tensor:
        """bool[B, 1, T, T], for the rows layout: whether a token (third dimension) attends to another one.

        causal, bidirectional: the rules of the model's attention modules. Padding attends to padding.
        """
        document, position = batch.token_document, batch.position_ids  # int64[B, T] each
        lengths = torch.tensor([*self.lengths, 0], device=document.device)  # the last one is of padding, -1
        first = position < lengths[document]  # bool[B, T]
        both_ways = first if self.bidirectional == "first" else ~first
        query, key = position[:, :, None], position[:, None, :]
        ahead = (key > query) & both_ways[:, :, None] & (first[:, :, None] == first[:, None, :])
        visible = torch.where(
            both_ways[:, :, None],
            bidirectional.sees(query, key) & (ahead | (key <= query)),
            causal.sees(query, key),
        )
        return (visible & (document[:, :, None] == document[:, None, :]))[:, None]


def text_segments(batch: TokenBatch, bidirectional: Segment) -> Segments:
    """The segments of texts to embed: what comes before the text (BOS, instruction, format), and the text."""
    assert batch.pool is not None
    begins = torch.full_like(batch.pool.first, torch.iinfo(torch.int64).max)  # int64[D]
    begins = begins.scatter_reduce(0, batch.pool.text, batch.pool.positions, "amin")
    return Segments(tuple((begins - batch.pool.first).tolist()), bidirectional)


def prompt_segments(batch: TokenBatch) -> Segments:
    """The segments of sequences to generate: the tokens before the first supervised one, which are bidirectional, and the
    rest. A document without supervised tokens is a prompt as a whole."""
    document = batch.token_document.flatten()  # int64[B · T]
    count = len(batch.supervised)
    lengths = torch.bincount(document[document >= 0], minlength=count)  # int64[D]
    lengths = lengths.scatter_reduce(
        0, document[batch.predicting], batch.position_ids.flatten()[batch.predicting] + 1, "amin"
    )
    return Segments(tuple(lengths.tolist()), "first")


def inputs(base: Any, batch: TokenBatch, segments: Segments, *, widen: bool = False) -> dict[str, Any]:
    """Keyword arguments by which transformers' attention of rows follows the segments.

    widen: ignore sliding windows. Layers of several kinds (`layer_types` of the config) get a mask each. ValueError if
    layers of one kind have different windows.
    """
    if widen:
        return {"attention_mask": as_mask(base, segments.mask(batch, Rule(True), Rule(False)))}
    kinds = getattr(base.config.get_text_config(), "layer_types", None) or []
    rules: dict[str, set[tuple[Rule | None, Rule | None]]] = {}
    for module in base.modules():
        if known := vars(module).get(visibility.ATTRIBUTE):
            kind = kinds[module.layer_idx] if kinds else ""
            rules.setdefault(kind, set()).add((known.get(True), known.get(False)))
    masks: dict[str, torch.Tensor] = {}
    for kind, found in rules.items():
        causal, bidirectional = found.pop()
        if found or causal is None or bidirectional is None:
            raise ValueError("its layers have different sliding windows, which one mask cannot describe")
        masks[kind] = as_mask(base, segments.mask(batch, causal, bidirectional))
    assert masks, "`learn_rules` comes first"
    return {"attention_mask": masks if len(masks) > 1 else next(iter(masks.values()))}


def as_mask(base: Any, visible: torch.Tensor) -> torch.Tensor:
    """A mask [B, 1, T, T] as the model's attention takes it: bool for sdpa, else added to the scores.

    transformers uses a four-dimensional mask unchanged in every layer, also in those with a sliding window.
    """
    if base.config._attn_implementation == "sdpa":
        return visible
    mask = torch.zeros(visible.shape, dtype=base.dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(base.dtype).min)


def learn_rules(base: Any) -> None:
    """Learn the rules of the attention modules of a model, unless they are known. ValueError if no rule describes them."""
    for causal in (True, False):
        rules = visibility.rules_of(base)
        if not rules or any(causal not in of_module for of_module in rules.values()):
            visibility.learn(base, causal=causal)


def _part(spans: list[tuple[int, int, int, int]], *, causal: bool, device: torch.device) -> Part:
    """spans: of each document, (start, stop) of the queries and (start, stop) of the keys, in the stream."""
    spans = [span for span in spans if span[0] < span[1]]
    queries, keys = (
        torch.cat([torch.arange(span[at], span[at + 1]) for span in spans]).to(device) for at in (0, 2)
    )
    query_documents, key_documents = (
        Documents.packed([span[at + 1] - span[at] for span in spans], device) for at in (0, 2)
    )
    return Part(causal, queries, keys, query_documents, key_documents)
