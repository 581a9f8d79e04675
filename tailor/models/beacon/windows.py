"""One window of a document with beacons: where its tokens stand, and what of it goes on into the memory.

A window goes through the stock model, with a cache that shows it the memory before it and takes the keys and values
that stay: those of the beacons, of the document's first tokens (sinks), or of all tokens for ratio 0. Positions are
compact: the memory stands at 0, 1, 2 … and the window follows. Rotation leaves a key at its place in the window, so
each one that stays is turned on to its place in the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache

KeyValue = tuple[torch.Tensor, torch.Tensor]
"""Keys and values, [B, kv heads, n, d]."""
Turn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(keys [B, kv heads, n, d], positions to go on by int64[n]) -> the keys there."""


@dataclass(frozen=True)
class Window:
    """Places in the window as the model reads it, tokens and beacons in their order. All int64."""

    order: torch.Tensor
    """The window, of the tokens (0 … n-1) followed by the beacons (n …)."""
    tokens: torch.Tensor
    """Where the tokens stand."""
    beacons: torch.Tensor
    """Where the beacons stand."""
    kept: torch.Tensor
    """Where stands what goes on into the memory, in the memory's order."""

    @classmethod
    def compressed(cls, tokens: int, ratio: int, sinks: int, device: torch.device) -> Window:
        """A window that is forgotten, with a beacon after every `ratio` of its tokens. sinks: tokens of it that stay."""
        numbers = torch.arange(tokens, device=device)
        none = numbers[:0]
        if not ratio:
            return cls(numbers, numbers, none, numbers)
        places = numbers + numbers // ratio
        beacons = torch.arange(1, tokens // ratio + 1, device=device) * (ratio + 1) - 1
        order = torch.cat([places, beacons]).argsort()
        return cls(order, places, beacons, torch.cat([places[:sinks], beacons]))

    @classmethod
    def last(cls, tokens: int, device: torch.device) -> Window:
        """A document's last window: its tokens stay as they are, and nothing follows them."""
        numbers = torch.arange(tokens, device=device)
        return cls(numbers, numbers, numbers[:0], numbers[:0])


@dataclass(frozen=True)
class Memory:
    """What stays of the windows before: per layer, the keys and values of each window. Never changed."""

    layers: tuple[tuple[KeyValue, ...], ...] = ()
    length: int = 0
    """Keys of a layer."""

    def extended(self, taken: tuple[KeyValue, ...], length: int) -> Memory:
        """The same with what one more window left in each layer."""
        before = self.layers or ((),) * len(taken)
        return Memory(
            tuple((*pieces, new) for pieces, new in zip(before, taken, strict=True)), self.length + length
        )

    def cache(self) -> DynamicCache:
        """A stock cache that holds it."""
        cache = DynamicCache()
        for layer, pieces in enumerate(self.layers):
            cache.update(*(torch.cat(parts, dim=2) for parts in zip(*pieces, strict=True)), layer)
        return cache


class WindowCache(Cache):
    """The memory as one window's forward pass sees it, and the place for what it leaves.

    Activation checkpointing computes a layer again in the backward pass, when later windows have been read: nothing
    here changes with a second call, and what the first one left stays.
    """

    def __init__(self, memory: Memory, window: Window, turn: Turn) -> None:
        super().__init__(layers=[])
        self.memory, self.window = memory, window
        self._turn = turn
        self._on = torch.arange(len(window.kept), device=window.kept.device) - window.kept
        """By how much each kept key moves: the memory before the window is before both places."""
        self._taken: dict[int, KeyValue] = {}

    def update(  # type: ignore[override]
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> KeyValue:
        window = self.window
        # Also the second time: checkpointing expects the same operations.
        keys, values = (states.index_select(2, window.kept) for states in (key_states, value_states))
        left = (self._turn(keys, self._on), values)
        self._taken.setdefault(layer_idx, left)
        if not self.memory.length:
            return key_states, value_states
        # Joined here and not once for all windows: checkpointing then keeps one copy of the memory, not one per window.
        before = zip(*self.memory.layers[layer_idx], strict=True)
        keys, values = (
            torch.cat([*pieces, own], dim=2)
            for pieces, own in zip(before, (key_states, value_states), strict=True)
        )
        return keys, values

    def after(self) -> Memory:
        """The memory after the window, once it has been read."""
        taken = tuple(self._taken[layer] for layer in sorted(self._taken))
        return self.memory.extended(taken, len(self.window.kept))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.memory.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.memory.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.memory.length + query_length, 0


def key_rotation(decoder: Any) -> Turn:
    """Turns keys of a decoder whose rotation is fixed. A scale of the rotation (YaRN's) is on the keys already."""
    inverse = decoder.rotary_emb.inv_freq

    def turn(keys: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        with torch.autocast(keys.device.type, enabled=False):
            angles = by[:, None].float() * inverse.float()[None, :].to(by.device)
            cos, sin = (part.repeat(1, 2) for part in (angles.cos(), angles.sin()))
            exact = keys.float()
            first, second = exact.chunk(2, dim=-1)
            return (exact * cos + torch.cat([-second, first], dim=-1) * sin).to(keys.dtype)

    return turn
