"""Per-token loss of long texts, read in sliding windows so that every token is scored once."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tailor.errors import ModelError
from tailor.models import rope
from tailor.models.beacon.model import BeaconModel
from tailor.models.beacon.modules import Beacons
from tailor.models.causal import CausalModel
from tailor.models.decoder import decoder_of
from tailor.plan import beacon

BUCKETS = 16
"""Number of equal parts of a window for which the mean loss is reported."""
TILE = 512
"""Positions whose logits are in memory at once: 512 × a vocabulary of 128k in float32 is 256 MiB."""


@dataclass(frozen=True)
class Windows:
    """A text to read in windows of `length` tokens. Each window after the first scores `stride` new tokens.

    ids: of the text alone. prefix: what the tokenizer puts before a text (BOS). Every window starts with it; its tokens count
    in `length` and are never scored. Without it, a model that always saw it reads the start of a window at a far higher loss:
    383 tokens in windows of 64 have a perplexity of 326 with Gemma 3 270M, and 38.5 with BOS in every window.
    prefill: the window is read in chunks of this many tokens, with a KV cache; None reads it in one pass.
    """

    ids: list[int]
    length: int
    stride: int
    prefill: int | None = None
    prefix: tuple[int, ...] = ()


@dataclass(frozen=True)
class LossByPosition:
    """Sums over the scored tokens of each part of the window: both lists have `BUCKETS` numbers. loss: in nats."""

    loss: list[float]
    tokens: list[int]


def sliding_windows(
    tokens: int, length: int, stride: int, *, prefixed: bool = False
) -> Iterator[tuple[int, int, int]]:
    """(start, first scored token, end) of each window over `tokens` tokens.

    prefixed: whether a prefix precedes each window. Without one, the first token of the text is never scored, because
    nothing precedes it.
    """
    assert stride < length + prefixed, "tokens between two windows would not be scored, or without context"
    scored = end = min(length, tokens)
    yield 0, int(not prefixed), end
    while scored < tokens:
        end = min(scored + stride, tokens)
        yield end - length, scored, end
        scored = end


@torch.no_grad()
def losses(model: CausalModel, text: Windows) -> LossByPosition:
    """The summed losses of a text's tokens, in nats, by position in the window."""
    loss = torch.zeros(BUCKETS, dtype=torch.float64)  # [BUCKETS]
    tokens = torch.zeros(BUCKETS, dtype=torch.int64)  # [BUCKETS]
    prefix = len(text.prefix)
    for start, first, end in _windows(text):
        ids, scored = [*text.prefix, *text.ids[start:end]], prefix + first - start
        token_loss = token_losses(model, ids, scored, text.prefill).double().cpu()  # [S]
        bucket = torch.arange(scored, len(ids)) * BUCKETS // text.length  # [S]
        loss.index_add_(0, bucket, token_loss)
        tokens.index_add_(0, bucket, torch.ones_like(bucket))
    return LossByPosition(loss.tolist(), tokens.tolist())


def sizes(text: Windows) -> list[int]:
    """The tokens of each window, with the prefix."""
    return [len(text.prefix) + end - start for start, _, end in _windows(text)]


def _windows(text: Windows) -> Iterator[tuple[int, int, int]]:
    prefix = len(text.prefix)
    return sliding_windows(len(text.ids), text.length - prefix, text.stride, prefixed=prefix > 0)


@torch.no_grad()
def token_losses(
    model: CausalModel, ids: Sequence[int], first: int, prefill: int | None = None
) -> torch.Tensor:
    """The loss of each token from index `first` (at least 1) on, given all tokens before it: float32[len(ids) - first].

    ModelError when `prefill` splits the text and the model cannot be read in chunks.
    """
    device = next(model.parameters()).device
    tokens = torch.tensor([list(ids)], device=device)  # [1, T]
    if isinstance(model, BeaconModel) and not model.beacons.off:
        # Beacons read a text window by window anyway, so `prefill` has no effect here.
        states = model.read(tokens, _ratios(model.beacons, len(ids)))[0, first - 1 : -1]  # [S, H]
        return torch.cat(list(_tiles(model.head, states, tokens[0, first:])))
    forward = decoder_of(model.base) if model.splits_head else model.base
    part = len(ids) if prefill is None else prefill
    if part < len(ids):
        _require_parts(model.base)
    cache, losses_of_parts = None, []
    for start in range(0, len(ids), part):
        stop = min(start + part, len(ids))
        out = forward(input_ids=tokens[:, start:stop], past_key_values=cache, use_cache=part < len(ids))
        cache = getattr(out, "past_key_values", None)
        states = out.last_hidden_state[0] if model.splits_head else out.logits[0]  # [chunk, H] or [chunk, V]
        # Position t predicts token t + 1.
        begin, end = max(first - 1, start), min(stop, len(ids) - 1)
        if begin < end:
            head = model.head if model.splits_head else nn.Identity()
            losses_of_parts += list(
                _tiles(head, states[begin - start : end - start], tokens[0, begin + 1 : end + 1])
            )
    return torch.cat(losses_of_parts)


def _ratios(beacons: Beacons, length: int) -> tuple[int, ...]:
    """The compression ratio of each window of a text of `length` tokens, as in every evaluation."""
    return beacon.ratios(beacons.spec, beacon.windows_of(length, beacons.spec.window), beacons.limit)


def _tiles(head: nn.Module, states: torch.Tensor, targets: torch.Tensor) -> Iterator[torch.Tensor]:
    """The loss of each target, by tiles of `TILE` positions. states: [S, H]; targets: int64[S]."""
    for at in range(0, len(states), TILE):
        logits = head(states[at : at + TILE]).float()  # [TILE, V]
        yield nn.functional.cross_entropy(logits, targets[at : at + TILE], reduction="none")


def _require_parts(base: Any) -> None:
    """ModelError for a model whose losses change when a text is read in chunks."""
    name = type(base).__name__
    if "past_key_values" not in inspect.signature(type(decoder_of(base)).forward).parameters:
        raise ModelError(
            f"prefill: {name} has no KV cache, so it cannot read a text in chunks", hint="remove prefill"
        )
    if rope.follows_length(base):
        raise ModelError(
            f"prefill: the RoPE frequencies of this {name} depend on the length of the whole text, so it cannot read it in chunks",
            hint="remove prefill",
        )
