"""The weights of activation beacons: one embedding, and separate attention projections next to those of the frozen base.

The base does not change. A wrapped projection uses the beacon weights for the positions that are beacons. The positions
come from the cache of each call, so that a layer that activation checkpointing computes again uses the same ones.
Shapes: see `tailor.models`; n is the number of positions of a window, tokens and beacons.
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
from tailor.models.decoder import decoder_of
from tailor.plan.beacon import refusal
from tailor.spec.model import Beacon

ROTATION_TOLERANCE = 1e-4
"""Maximum relative difference between a key rotated to a position and one computed there that counts as rounding."""


class BeaconLinear(nn.Module):
    """A frozen projection with separate weights for beacons: a full copy, or a low-rank update if `rank` is given."""

    def __init__(self, base: nn.Linear, rank: int | None) -> None:
        super().__init__()
        self.base = base
        self.rows: torch.Tensor | None = None
        """int64[beacons]: positions in the window that are beacons. A hook sets it before each call of the attention."""
        self.own = _LowRank(base, rank) if rank else _copy(base)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: [B, n, in] -> [B, n, out]."""
        out: torch.Tensor = self.base(hidden)  # [B, n, out]
        if self.rows is None or not len(self.rows):
            return out
        beacons = hidden.index_select(1, self.rows)  # [B, beacons, in]
        projected = self.own(beacons)  # [B, beacons, out]
        if isinstance(self.own, _LowRank):
            projected = out.index_select(1, self.rows) + projected
        return out.index_copy(1, self.rows, projected.to(out.dtype))


class _LowRank(nn.Module):
    """A low-rank update `up · down`. `up` starts at zero, so that beacons start with the projection of the base, as in LoRA."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        options = {"device": base.weight.device, "dtype": torch.float32}
        self.down = nn.Parameter(torch.empty(rank, base.in_features, **options))  # [rank, in]
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, **options))  # [out, rank]
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.linear(functional.linear(hidden.to(self.down.dtype), self.down), self.up)


class _Copy(nn.Module):
    """A trained float32 copy of a projection."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().to(torch.float32, copy=True))
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(torch.float32, copy=True))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)


def _copy(base: nn.Linear) -> _Copy:
    if not base.weight.is_floating_point():
        raise ModelError(
            "model.beacon without a rank trains copies of the base's projections, and quantized weights cannot be copied",
            hint="set model.beacon.rank to train a low-rank update instead",
        )
    return _Copy(base.weight, base.bias)


class Beacons(nn.Module):
    """The beacons of one network: settings, embedding, and the forward pass of a window."""

    def __init__(self, network: Any, spec: Beacon, embedding: torch.Tensor) -> None:
        super().__init__()
        self.spec = spec
        self.off = False
        """True while the network computes as the plain base, without beacons."""
        self.embedding = nn.Parameter(embedding.detach().to(torch.float32, copy=True))
        self._network = [
            network
        ]  # in a list: the network contains this module, so it must not be a submodule

    def read(self, ids: torch.Tensor, memory: Memory, window: Window) -> tuple[torch.Tensor, Memory]:
        """Read one window: (last hidden states of its tokens [B, tokens, H], the memory after it). ids: int64[B, tokens]."""
        network = self._network[0]
        decoder = decoder_of(network)
        embedded = network.get_input_embeddings()(ids)  # [B, tokens, H]
        if len(window.beacons):
            # [B, beacons, H]
            of_beacons = self.embedding.to(embedded.dtype).expand(len(ids), len(window.beacons), -1)
            embedded = torch.cat([embedded, of_beacons], dim=1).index_select(1, window.order)  # [B, n, H]
        cache = WindowCache(memory, window, key_rotation(decoder))
        positions = torch.arange(
            memory.length, memory.length + embedded.shape[1], device=ids.device
        )  # int64[n]
        out = decoder(
            inputs_embeds=embedded,
            position_ids=positions.expand(len(ids), -1),
            past_key_values=cache,
            use_cache=False,
        )
        hidden = out.last_hidden_state  # [B, n, H]
        if len(window.beacons):
            hidden = hidden.index_select(1, window.tokens)
        return hidden, cache.after()

    def read_window(self, ids: torch.Tensor, memory: Memory, ratio: int) -> tuple[torch.Tensor, Memory]:
        """Read a full window that is compressed into beacons, one per `ratio` tokens; 0 keeps all tokens. Returns as `read`."""
        first = memory.length == 0
        window = Window.compressed(ids.shape[1], ratio, self.spec.sink if first else 0, ids.device)
        return self.read(ids, memory, window)

    def read_last_window(self, ids: torch.Tensor, memory: Memory) -> torch.Tensor:
        """Last hidden states [B, tokens, H] of a document's last window, which has no beacons."""
        return self.read(ids, memory, Window.last(ids.shape[1], ids.device))[0]

    @property
    def limit(self) -> int | None:
        """Maximum positions of the network, from its config."""
        positions = getattr(self._network[0].config, "max_position_embeddings", None)
        return None if positions is None else int(positions)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Context in which the network computes as the plain base."""
        self.off = True
        try:
            yield
        finally:
            self.off = False


def beacons_of(network: Any) -> Beacons | None:
    """The beacons of a transformers model; None if it has none."""
    beacons = getattr(network, "beacons", None)
    return beacons if isinstance(beacons, Beacons) else None


def add_beacons(network: Any, spec: Beacon) -> Beacons:
    """Freeze a transformers model and add beacons, whose weights are trained in float32.

    Raises ModelError if the architecture does not support them.
    """
    if why := refusal(network.config.to_dict()):
        raise ModelError(
            f"model.beacon: {type(network).__name__} does not support beacons: {why}",
            hint="remove model.beacon, or use another base",
        )
    decoder = decoder_of(network)
    network.requires_grad_(False)
    for layer in decoder.layers:
        # Nothing reads the output of the last layer's beacons, so that their query weights would have no gradient.
        last = layer is decoder.layers[-1]
        for letter in (letter for letter in spec.projections if not (last and letter == "q")):
            name = f"{letter}_proj"
            setattr(layer.self_attn, name, BeaconLinear(getattr(layer.self_attn, name), spec.rank))
        layer.self_attn.register_forward_pre_hook(_set_beacon_rows, with_kwargs=True)
        layer._can_checkpoint_with_cache = True  # else transformers drops the cache in checkpointed layers
    network.beacons = Beacons(network, spec, _embedding_of_eos(network))
    if network.device.type != "meta":  # there, no rotation can be computed
        _check_key_rotation(decoder)
    return network.beacons


def _set_beacon_rows(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A forward pre-hook of an attention: gives its projections the positions of this call that are beacons."""
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
            "model.beacon: the beacon embedding starts as that of the end-of-text token, but config.json has no eos_token_id",
            hint="set eos_token_id in the base's config.json",
        )
    weight: torch.Tensor = network.get_input_embeddings().weight
    return weight[eos]


@torch.no_grad()
def _check_key_rotation(decoder: Any) -> None:
    """Check that a key rotated from one position to another equals the key that the model computes there. ModelError."""
    rotary = decoder.rotary_emb
    device = rotary.inv_freq.device
    sources = torch.tensor([[3, 700, 41]], device=device)  # int64[1, 3]
    targets = torch.tensor([[0, 29, 40]], device=device)  # int64[1, 3]
    size = 2 * rotary.inv_freq.shape[0]
    keys = torch.randn(1, 1, 3, size, generator=torch.Generator().manual_seed(0)).to(device)  # [1, 1, 3, d]
    with torch.autocast(device.type, enabled=False):
        at_source, at_target = (_rotated(rotary, keys, positions) for positions in (sources, targets))
        moved = key_rotation(decoder)(at_source, (targets - sources)[0])
    if float((moved - at_target).abs().max()) > ROTATION_TOLERANCE * float(at_target.abs().max()):
        raise ModelError(
            f"model.beacon: the RoPE of {type(decoder).__name__} does not let keys be moved to another position",
            hint="remove model.beacon, or use another base",
        )


def _rotated(rotary: Any, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Apply the model's RoPE. keys: [B, kv heads, n, d]; positions: int64[B, n]."""
    cos, sin = (part[:, None].float() for part in rotary(keys, positions))  # [B, 1, n, d]
    first, second = keys.chunk(2, dim=-1)
    return keys * cos + torch.cat([-second, first], dim=-1) * sin
