"""The loss of each token of long texts, in windows that slide so that every token is scored once."""

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
from tailor.plan import beacon

BUCKETS = 16
"""Parts of a window by which the loss is told."""
TILE = 512
"""Positions whose logits exist at once."""


@dataclass(frozen=True)
class Windows:
    """A text to read in windows of `length` tokens, of which all but the first have `stride` new ones.

    prefill: read a window in parts of so many tokens, with a cache.
    """

    ids: list[int]
    length: int
    stride: int
    prefill: int | None = None


@dataclass(frozen=True)
class ByPosition:
    """Sums over the scored tokens, by the part of the window that a token stands in: each of `BUCKETS` numbers."""

    loss: list[float]
    tokens: list[int]


def cut(tokens: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, first scored, end) of each window over so many tokens. The text's own first token is never scored."""
    scored = end = min(length, tokens)
    yield 0, 1, end
    while scored < tokens:
        end = min(scored + stride, tokens)
        yield end - length, scored, end
        scored = end


@torch.no_grad()
def losses(model: CausalModel, text: Windows) -> ByPosition:
    """The losses of a text's tokens in nats, summed."""
    loss, tokens = torch.zeros(BUCKETS, dtype=torch.float64), torch.zeros(BUCKETS, dtype=torch.int64)
    for start, first, end in cut(len(text.ids), text.length, text.stride):
        own = token_losses(model, text.ids[start:end], first - start, text.prefill).double().cpu()
        bucket = torch.arange(first - start, end - start) * BUCKETS // text.length
        loss.index_add_(0, bucket, own)
        tokens.index_add_(0, bucket, torch.ones_like(bucket))
    return ByPosition(loss.tolist(), tokens.tolist())


@torch.no_grad()
def token_losses(
    model: CausalModel, ids: Sequence[int], first: int, prefill: int | None = None
) -> torch.Tensor:
    """The loss of each of the tokens from `first` (at least 1) on, given all before it. float32[len(ids) - first]."""
    device = next(model.parameters()).device
    tokens = torch.tensor([list(ids)], device=device)
    if isinstance(model, BeaconModel) and not model.beacons.off:
        states = model.read(tokens, _ratios(model.beacons, len(ids)))[
            0, first - 1 : -1
        ]  # by windows, which are parts
        return torch.cat(list(_tiles(model.head, states, tokens[0, first:])))
    forward = model.base.get_decoder() if model.splits_head else model.base
    part = len(ids) if prefill is None else prefill
    if part < len(ids):
        _require_parts(model.base)
    cache, found = None, []
    for start in range(0, len(ids), part):
        stop = min(start + part, len(ids))
        out = forward(input_ids=tokens[:, start:stop], past_key_values=cache, use_cache=part < len(ids))
        cache = getattr(out, "past_key_values", None)
        states = out.last_hidden_state[0] if model.splits_head else out.logits[0]
        # Position t predicts token t + 1.
        begin, end = max(first - 1, start), min(stop, len(ids) - 1)
        if begin < end:
            head = model.head if model.splits_head else nn.Identity()
            found += list(_tiles(head, states[begin - start : end - start], tokens[0, begin + 1 : end + 1]))
    return torch.cat(found)


def _ratios(beacons: Beacons, length: int) -> tuple[int, ...]:
    """Of a document's windows, as in every evaluation."""
    return beacon.ratios(beacons.spec, beacon.windows_of(length, beacons.spec.window), beacons.limit)


def _tiles(head: nn.Module, states: torch.Tensor, targets: torch.Tensor) -> Iterator[torch.Tensor]:
    for at in range(0, len(states), TILE):
        logits = head(states[at : at + TILE]).float()
        yield nn.functional.cross_entropy(logits, targets[at : at + TILE], reduction="none")


def _require_parts(base: Any) -> None:
    """ModelError for models that give other numbers when a text is read in parts."""
    name = type(base).__name__
    if "past_key_values" not in inspect.signature(type(base.get_decoder()).forward).parameters:
        raise ModelError(f"prefill: {name} keeps no cache of keys and values", hint="leave prefill out")
    if rope.follows_length(base):
        raise ModelError(
            f"prefill: the frequencies of this {name} follow a text's whole length, so it cannot be read in parts",
            hint="leave prefill out",
        )
