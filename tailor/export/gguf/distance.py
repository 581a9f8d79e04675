"""Logits of tokens that stand far behind what they read: they show whether two programs rotate positions in the same way.

A wrong base or scaling of RoPE hardly changes the logits of a short row. A long row is not computed for it: the keys of a
few tokens are moved, so that the others read them from a distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

READ = 16
"""Tokens that are read from a distance."""


def distance_of(config: Any) -> int | None:
    """The distance at which a model can be compared, in tokens; None if it cannot.

    It ends within max_position_embeddings. Left out: models with sliding windows, which do not see far, those of other layers
    than attention, RoPE whose frequencies depend on the length (`dynamic`, `longrope`), and `yarn`, of which llama.cpp does not
    move keys exactly.
    """
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict) or parameters.get("rope_type", "default") not in (
        *("default", "linear", "llama3"),
    ):
        return None
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layers != {"full_attention"} or getattr(config, "sliding_window", None):
        return None
    distance = int(config.max_position_embeddings) - 4 * READ
    return distance if distance > READ else None


def far_logits(model: Any, before: Sequence[int], after: Sequence[int], distance: int) -> torch.Tensor:
    """The logits after each token of `after`, float32 [T, V]. The tokens before it, but the last, are moved `distance` away."""

    def read(ids: Sequence[int], start: int, cache: Any = None) -> Any:
        positions = torch.arange(start, start + len(ids))[None]  # [1, T]
        return model(
            input_ids=torch.tensor([ids]), position_ids=positions, past_key_values=cache, use_cache=True
        )

    with torch.no_grad():
        near = read(before, distance).past_key_values
        far = read(before[:-1], 0).past_key_values
        cache = DynamicCache()
        for layer, (last, others) in enumerate(zip(near.layers, far.layers, strict=True)):
            keys = torch.cat([others.keys, last.keys[:, :, -1:]], dim=2)  # [1, heads, T, head size]
            values = torch.cat([others.values, last.values[:, :, -1:]], dim=2)
            cache.update(keys, values, layer)
        return read(after, distance + len(before), cache).logits[0].float()  # type: ignore[no-any-return]
