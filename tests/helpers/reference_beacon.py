"""Activation beacons written out, from the paper: keys are kept before rotation and turned anew for every window.

Nothing of the package is used, so that its cache, its turning of keys and its choice of rows are compared with
something else. One document, float64 where the model is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


def read(network: Any, ids: torch.Tensor, window: int, ratios: list[int], sinks: int) -> torch.Tensor:
    """Last hidden states of every token, [n, H]. network: as the package made it, with beacons. ids: int64[n]."""
    decoder, found = network.get_decoder(), []
    memory: list[Any] = [None] * len(
        decoder.layers
    )  # per layer: keys before rotation and values, [m, kv heads, d]
    for at in range(len(ratios) + 1):
        piece = ids[at * window : (at + 1) * window]
        ratio = ratios[at] if at < len(ratios) else 0
        rows, is_beacon = [], []
        for number, token in enumerate(piece.tolist()):
            rows.append(decoder.embed_tokens.weight[token])
            is_beacon.append(False)
            if ratio and (number + 1) % ratio == 0:
                rows.append(network.beacons.embedding)
                is_beacon.append(True)
        beacon = torch.tensor(is_beacon)
        keep = list(range(len(rows))) if not ratio else [i for i, yes in enumerate(is_beacon) if yes]
        if at == 0 and ratio:
            keep = [i for i, yes in enumerate(is_beacon) if not yes][:sinks] + keep
        x = torch.stack(rows)
        for number, layer in enumerate(decoder.layers):
            x, memory[number] = _layer(network, layer, x, beacon, memory[number], keep)
        found.append(decoder.norm(x)[~beacon])
    return torch.cat(found)


def _layer(network: Any, layer: Any, x: torch.Tensor, beacon: torch.Tensor, memory: Any, keep: list[int]):
    config, attention = network.config, layer.self_attn
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    normed = layer.input_layernorm(x)
    query, key, value = (
        _project(getattr(attention, name), normed, beacon).view(len(x), -1, size)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    keys, values = (
        (key, value) if memory is None else (torch.cat([memory[0], key]), torch.cat([memory[1], value]))
    )
    before = len(keys) - len(x)
    cos, sin = network.get_decoder().rotary_emb(x[None], torch.arange(len(keys))[None])
    turned_keys = _turn(keys, cos[0], sin[0])
    turned_query = _turn(query, cos[0, before:], sin[0, before:])
    groups = query.shape[1] // key.shape[1]
    turned_keys, repeated = (part.repeat_interleave(groups, dim=1) for part in (turned_keys, values))
    scores = torch.einsum("qhd,khd->hqk", turned_query, turned_keys) / size**0.5
    sees = torch.arange(len(keys))[None, :] <= before + torch.arange(len(x))[:, None]
    weights = scores.masked_fill(~sees, -torch.inf).softmax(dim=-1)
    mixed = torch.einsum("hqk,khd->qhd", weights, repeated).reshape(len(x), -1)
    x = x + attention.o_proj(mixed)
    x = x + layer.mlp(layer.post_attention_layernorm(x))
    kept = (key[keep], value[keep])
    if memory is not None:
        kept = (torch.cat([memory[0], kept[0]]), torch.cat([memory[1], kept[1]]))
    return x, kept


def _project(module: Any, x: torch.Tensor, beacon: torch.Tensor) -> torch.Tensor:
    if not hasattr(module, "own"):
        return module(x)
    plain = functional.linear(x, module.base.weight, module.base.bias)
    if hasattr(module.own, "up"):
        own = plain + x @ module.own.down.T @ module.own.up.T
    else:
        own = functional.linear(x, module.own.weight, module.own.bias)
    return torch.where(beacon[:, None], own, plain)


def _turn(part: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = part.chunk(2, dim=-1)
    return part * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]
