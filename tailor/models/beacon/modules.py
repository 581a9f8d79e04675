"""The weights of activation beacons: one embedding, and projections of their own beside a frozen base's.

Nothing of the base changes: a projection is wrapped, and takes its own weights for the rows that are beacons. Which
rows are is said by the cache of each call, so that a layer that is computed again takes the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tailor.errors import ModelError
from tailor.models.beacon.windows import Memory, Window, WindowCache, key_rotation
from tailor.plan.beacon import refusal
from tailor.spec.model import Beacon

ROTATION_TOLERANCE = 1e-4
"""Largest difference between a key that is turned and one that was made at its place, that rounding explains."""


class BeaconLinear(nn.Module):
    """A frozen projection with weights of its own for beacons: a whole copy, or a low-rank update."""

    def __init__(self, base: nn.Linear, rank: int | None) -> None:
        super().__init__()
        self.base = base
        self.rows: torch.Tensor | None = None
        """int64[b], the rows that are beacons; given by the attention for the time of its call."""
        self.own = _LowRank(base, rank) if rank else _copy(base)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: [B, n, in] -> [B, n, out]."""
        out: torch.Tensor = self.base(hidden)
        if self.rows is None or not len(self.rows):
            return out
        beacons = hidden.index_select(1, self.rows)
        own = self.own(beacons)
        if isinstance(self.own, _LowRank):
            own = out.index_select(1, self.rows) + own
        return out.index_copy(1, self.rows, own.to(out.dtype))


class _LowRank(nn.Module):
    """B · A, where B begins with zeros, so that beacons begin as what the base makes of them."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        place = {"device": base.weight.device, "dtype": torch.float32}
        self.down = nn.Parameter(torch.empty(rank, base.in_features, **place))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, **place))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.linear(functional.linear(hidden.to(self.down.dtype), self.down), self.up)


class _Copy(nn.Module):
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().to(torch.float32, copy=True))
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(torch.float32, copy=True))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)


def _copy(base: nn.Linear) -> _Copy:
    if not base.weight.is_floating_point():
        raise ModelError(
            "model.beacon copies projections of the base, whose weights are quantized",
            hint="set model.beacon.rank, which trains a low-rank update of them",
        )
    return _Copy(base.weight, base.bias)


class Beacons(nn.Module):
    """Of one network: the recipe's settings, the beacons' embedding, and the way of a window through the network."""

    def __init__(self, network: Any, spec: Beacon, embedding: torch.Tensor) -> None:
        super().__init__()
        self.spec = spec
        self.off = False
        """The network answers without beacons, as the plain base."""
        self.embedding = nn.Parameter(embedding.detach().to(torch.float32, copy=True))
        self._network = [network]  # in a list: the network holds this module, and not the other way

    def read(self, ids: torch.Tensor, memory: Memory, window: Window) -> tuple[torch.Tensor, Memory]:
        """Last hidden states of a window's tokens, and the memory after it. ids: int64[B, n] -> [B, n, H]."""
        network = self._network[0]
        decoder = network.get_decoder()
        embedded = network.get_input_embeddings()(ids)
        if len(window.beacons):
            own = self.embedding.to(embedded.dtype).expand(len(ids), len(window.beacons), -1)
            embedded = torch.cat([embedded, own], dim=1).index_select(1, window.order)
        cache = WindowCache(memory, window, key_rotation(decoder))
        positions = torch.arange(memory.length, memory.length + embedded.shape[1], device=ids.device)
        out = decoder(
            inputs_embeds=embedded,
            position_ids=positions.expand(len(ids), -1),
            past_key_values=cache,
            use_cache=False,
        )
        hidden = out.last_hidden_state
        if len(window.beacons):
            hidden = hidden.index_select(1, window.tokens)
        return hidden, cache.after()

    def read_window(self, ids: torch.Tensor, memory: Memory, ratio: int) -> tuple[torch.Tensor, Memory]:
        """The same of a full window that is forgotten."""
        first = memory.length == 0
        window = Window.compressed(ids.shape[1], ratio, self.spec.sink if first else 0, ids.device)
        return self.read(ids, memory, window)

    def read_last_window(self, ids: torch.Tensor, memory: Memory) -> torch.Tensor:
        """Last hidden states of a document's last window."""
        return self.read(ids, memory, Window.last(ids.shape[1], ids.device))[0]

    @property
    def limit(self) -> int | None:
        """Positions that the network was made for."""
        found = getattr(self._network[0].config, "max_position_embeddings", None)
        return None if found is None else int(found)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The plain base meanwhile."""
        self.off = True
        try:
            yield
        finally:
            self.off = False


def beacons_of(network: Any) -> Beacons | None:
    """The beacons of a transformers model, where it has some."""
    found = getattr(network, "beacons", None)
    return found if isinstance(found, Beacons) else None


def add_beacons(network: Any, spec: Beacon) -> Beacons:
    """Freeze a transformers model and give it beacons. Their weights are float32 and trained. Raises ModelError."""
    if why := refusal(network.config.to_dict()):
        raise ModelError(
            f"model.beacon: {type(network).__name__} cannot have beacons: {why}",
            hint="leave model.beacon out, or take another base",
        )
    decoder = network.get_decoder()
    network.requires_grad_(False)
    for layer in decoder.layers:
        # What the last layer's beacons ask for is read by nothing: those weights would never learn.
        last = layer is decoder.layers[-1]
        for letter in (letter for letter in spec.projections if not (last and letter == "q")):
            name = f"{letter}_proj"
            setattr(layer.self_attn, name, BeaconLinear(getattr(layer.self_attn, name), spec.rank))
        layer.self_attn.register_forward_pre_hook(_set_beacon_rows, with_kwargs=True)
        layer._can_checkpoint_with_cache = True  # else transformers takes the memory away
    network.beacons = Beacons(network, spec, _embedding_of_eos(network))
    _check_key_rotation(decoder)
    return network.beacons


def _set_beacon_rows(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    cache = kwargs.get("past_key_values")
    rows = cache.window.beacons if isinstance(cache, WindowCache) else None
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        if isinstance(projection, BeaconLinear):
            projection.rows = rows


def _embedding_of_eos(network: Any) -> torch.Tensor:
    eos = network.config.eos_token_id
    if isinstance(eos, list):
        eos = eos[0] if eos else None
    if eos is None:
        raise ModelError(
            "model.beacon: beacons begin as the end-of-text token, and config.json names no eos_token_id",
            hint="write its id into the base's config.json",
        )
    weight: torch.Tensor = network.get_input_embeddings().weight
    return weight[eos]


@torch.no_grad()
def _check_key_rotation(decoder: Any) -> None:
    """A key that is turned must be the one that the live model would have made at the other place."""
    rotary = decoder.rotary_emb
    device = rotary.inv_freq.device
    places = torch.tensor([[3, 700, 41]], device=device)
    others = torch.tensor([[0, 29, 40]], device=device)
    size = 2 * rotary.inv_freq.shape[0]
    keys = torch.randn(1, 1, 3, size, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.autocast(device.type, enabled=False):
        here, there = (_rotated(rotary, keys, at) for at in (places, others))
        turned = key_rotation(decoder)(here, (others - places)[0])
    if float((turned - there).abs().max()) > ROTATION_TOLERANCE * float(there.abs().max()):
        raise ModelError(
            f"model.beacon: keys of {type(decoder).__name__} cannot be turned from one position to another",
            hint="leave model.beacon out, or take another base",
        )


def _rotated(rotary: Any, keys: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    cos, sin = (part[:, None].float() for part in rotary(keys, places))
    first, second = keys.chunk(2, dim=-1)
    return keys * cos + torch.cat([-second, first], dim=-1) * sin
