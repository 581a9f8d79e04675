"""Attention of a decoding step in which each row of the batch has a KV cache of its own, of any length.

Registered with transformers as `tailor_rows`. No padding and no mask is involved, so a row's result depends on the row
alone: on no other row, and not on their lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

NAME = "tailor_rows"


def register() -> None:
    """Register `attn_implementation="tailor_rows"` with transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, rows_attention)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@contextmanager
def attending_by_row(base: Any) -> Iterator[None]:
    """Set the attention of a transformers model to `tailor_rows` inside the context."""
    register()
    before = base.config._attn_implementation
    base.set_attn_implementation(NAME)
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def rows_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    caches: Sequence[Any] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it.

    query: [B, h, n, d]; key, value: [B, kv heads, n, d]; returns [B, n, h, d]. caches: the KV cache of each row, to which
    its key and value are appended; None for a row that is not in use, whose output is zero. Without `caches` it is
    transformers' own `sdpa`. Raises ValueError for a soft cap or attention sinks, which `sdpa` does not support.
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError("tailor_rows supports neither a soft cap nor attention sinks")
    if caches is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    out = query.new_zeros(*query.shape[:-1], value.shape[-1])  # [B, h, n, d]
    for row, cache in enumerate(caches):
        if cache is None:
            continue
        own = slice(row, row + 1)
        keys, values = cache.update(key[own], value[own], module.layer_idx)  # [1, kv heads, tokens, d]
        out[own] = functional.scaled_dot_product_attention(
            query[own], keys, values, scale=scaling, enable_gqa=query.shape[1] != keys.shape[1]
        )
    return out.transpose(1, 2), None
