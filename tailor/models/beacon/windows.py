"""One window of a document with beacons: the positions of its tokens, and which of its keys and values are kept.

A window goes through the unchanged transformers model with a cache. The cache gives it the memory of earlier windows, and
collects the keys and values that are kept: those of the beacons, of the document's first tokens (attention sinks, Xiao et
al. 2023, arXiv 2309.17453), or of all tokens for ratio 0. Positions are compact: the memory is at 0, 1, 2 …, the window
follows. RoPE has rotated a key to its position in the window, so that a kept key is rotated on to its position in the
memory. n is the number of positions of a window, tokens and beacons together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache

KeyValue = tuple[torch.Tensor, torch.Tensor]
"""Keys and values, [B, kv heads, n, d] each."""
RotateKeys = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(keys [B, kv heads, n, d], offsets int64[n]) -> the keys at positions moved by the offsets."""


@dataclass(frozen=True)
class Window:
    """Positions in a window as the model reads it, with beacons between the tokens. All tensors are int64."""

    order: torch.Tensor
    """[n]: permutation from (all tokens, then all beacons) to the order of the window."""
    tokens: torch.Tensor
    """[tokens]: positions of the tokens."""
    beacons: torch.Tensor
    """[beacons]: positions of the beacons."""
    kept: torch.Tensor
    """[kept]: positions whose keys and values go into the memory, in the memory's order."""

    @classmethod
    def compressed(cls, tokens: int, ratio: int, sinks: int, device: torch.device) -> Window:
        """A window with a beacon after every `ratio` tokens; ratio 0: no beacons, all tokens are kept.

        sinks: number of first tokens that are kept besides the beacons.
        """
        numbers = torch.arange(tokens, device=device)  # [tokens]
        none = numbers[:0]
        if not ratio:
            return cls(numbers, numbers, none, numbers)
        positions = numbers + numbers // ratio  # [tokens]
        beacons = torch.arange(1, tokens // ratio + 1, device=device) * (ratio + 1) - 1  # [beacons]
        order = torch.cat([positions, beacons]).argsort()  # [n]
        return cls(order, positions, beacons, torch.cat([positions[:sinks], beacons]))

    @classmethod
    def last(cls, tokens: int, device: torch.device) -> Window:
        """The last window of a document: it has no beacons and nothing of it is kept."""
        numbers = torch.arange(tokens, device=device)
        return cls(numbers, numbers, numbers[:0], numbers[:0])


@dataclass(frozen=True)
class Memory:
    """The kept keys and values of earlier windows: for each layer, those of each window. Immutable."""

    layers: tuple[tuple[KeyValue, ...], ...] = ()
    length: int = 0
    """Number of keys per layer."""

    def extended(self, taken: tuple[KeyValue, ...], length: int) -> Memory:
        """The memory with one more window. taken: the window's kept keys and values of each layer; length: their number."""
        before = self.layers or ((),) * len(taken)
        return Memory(
            tuple((*pieces, new) for pieces, new in zip(before, taken, strict=True)), self.length + length
        )

    def cache(self) -> DynamicCache:
        """The memory as a `DynamicCache` of transformers."""
        cache = DynamicCache()
        for layer, pieces in enumerate(self.layers):
            cache.update(*(torch.cat(parts, dim=2) for parts in zip(*pieces, strict=True)), layer)
        return cache


class WindowCache(Cache):
    """The cache of one window's forward pass: gives the memory, and collects the keys and values to keep.

    Activation checkpointing computes a layer again in the backward pass, after later windows have been read. A second call
    of `update` therefore changes nothing, and the results of the first one remain.
    """

    def __init__(self, memory: Memory, window: Window, rotate: RotateKeys) -> None:
        super().__init__(layers=[])
        self.memory, self.window = memory, window
        self._rotate = rotate
        self._offsets = torch.arange(len(window.kept), device=window.kept.device) - window.kept
        """int64[kept]: by how much each kept key moves. The earlier memory precedes both positions and cancels out."""
        self._taken: dict[int, KeyValue] = {}

    def update(  # type: ignore[override]
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> KeyValue:
        window = self.window
        # Also in the second call: checkpointing expects the recomputation to run the same operations.
        # [B, kv heads, kept, d] each
        keys, values = (states.index_select(2, window.kept) for states in (key_states, value_states))
        self._taken.setdefault(layer_idx, (self._rotate(keys, self._offsets), values))
        if not self.memory.length:
            return key_states, value_states
        # Concatenated here, inside the checkpointed layer: the concatenated memory is not kept for the backward pass, which
        # would be one copy per window.
        before = zip(*self.memory.layers[layer_idx], strict=True)
        # [B, kv heads, memory + n, d] each
        keys, values = (
            torch.cat([*pieces, states], dim=2)
            for pieces, states in zip(before, (key_states, value_states), strict=True)
        )
        return keys, values

    def after(self) -> Memory:
        """The memory including this window, once the window has been read."""
        taken = tuple(self._taken[layer] for layer in sorted(self._taken))
        return self.memory.extended(taken, len(self.window.kept))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.memory.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.memory.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.memory.length + query_length, 0


def key_rotation(decoder: Any) -> RotateKeys:
    """A function that moves keys to other positions by rotating them, for a decoder with fixed RoPE frequencies.

    It does not apply the attention factor (of YaRN, for example), which the keys contain already.
    """
    frequencies = decoder.rotary_emb.inv_freq  # [d / 2]

    def rotate(keys: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(keys.device.type, enabled=False):
            angles = offsets[:, None].float() * frequencies.float()[None, :].to(offsets.device)  # [n, d / 2]
            cos, sin = (part.repeat(1, 2) for part in (angles.cos(), angles.sin()))  # [n, d]
            exact = keys.float()  # [B, kv heads, n, d]
            first, second = exact.chunk(2, dim=-1)  # [B, kv heads, n, d / 2]
            return (exact * cos + torch.cat([-second, first], dim=-1) * sin).to(keys.dtype)

    return rotate
