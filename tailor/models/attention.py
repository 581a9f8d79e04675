"""Attention over packed documents: its cost is the sum of the squared document lengths, not the square of the pack's.

Registered with transformers as `tailor_documents`. It takes a stream [1, T] of documents. On a CPU it calls the kernel
once per document, on CUDA once for all documents (variable-length flash attention). No token attends to another document,
and no T × T mask is made. It is causal unless the model is called with `is_causal=False`, as in transformers. No mask
function is registered with it, because transformers then makes no mask. With sequence parallelism, the workers first
exchange their tokens of all heads for all tokens of their heads (`sequence`).
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from tailor.models import sequence
from tailor.models.documents import Documents

NAME = "tailor_documents"


def register() -> None:
    """Register `attn_implementation="tailor_documents"` with transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, documents_attention)


def stock_attention(base: Any) -> str:
    """transformers' own attention for a model: sdpa if the model supports it, else eager. Both handle masks and caches."""
    return "sdpa" if getattr(base, "_supports_sdpa", False) else "eager"


def documents_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: Documents | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    widen_window: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it.

    query: [1, h, T, d]; key, value: [1, kv heads, T, d]; returns [1, T, h, d]. With sequence parallelism over N workers,
    the tensors hold T / N tokens, while the bounds in `documents` are those of all T. widen_window: ignore a sliding window
    (for bidirectional attention). Raises ValueError for a mask or a soft cap, on which the checks at load try another
    attention.
    """
    if documents is None or attention_mask is not None or softcap is not None:
        raise ValueError(
            "tailor_documents needs document bounds, and supports neither an attention mask nor a soft cap"
        )
    kind = query.device.type
    # RoPE returns float32 queries and keys, and autocast does not cast the arguments of the flash kernel.
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if (group := documents.sequence) is not None:
        whole = replace(documents, sequence=None)
        parts = sequence.to_heads(group, query, key, value)  # [1, h / N, T, d] each
        out, _ = documents_attention(module, *parts, None, dropout, scaling, whole, sliding_window)
        return sequence.to_tokens(group, out), None
    sliding_window = None if widen_window else sliding_window or getattr(module, "sliding_window", None)
    causal = is_causal is not False
    if query.shape[-1] == value.shape[-1] and dropout == 0.0 and _flash_is_right(query.device, query.dtype):
        return _flash(query, key, value, documents, scaling, sliding_window, causal), None
    # `split`, not one slice per document: the backward pass of each slice would fill a gradient of all T tokens.
    lengths = [end - start for start, end in documents.bounds]
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    # [1, h, length, d] each
    out = [_one_document(*part, dropout, scaling, sliding_window, causal) for part in parts]
    return torch.cat(out, dim=2).transpose(1, 2), None  # [1, T, h, d]


def _one_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
    causal: bool,
) -> torch.Tensor:
    """query: [1, h, n, d]; key, value: [1, kv heads, n, d]; returns [1, h, n, d], for a document of n tokens."""
    length = query.shape[2]
    mask = None
    if window is not None and length > window:
        positions = torch.arange(length, device=query.device)  # int64[n]
        distance = positions[:, None] - positions[None, :]  # int64[n, n]
        # As in transformers: a causal window of w is the token and the w - 1 before it; a bidirectional one is w on each side.
        mask = (distance >= 0) & (distance < window) if causal else distance.abs() <= window
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal and mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    scaling: float | None,
    window: int | None,
    causal: bool,
) -> torch.Tensor:
    """Shapes as in `documents_attention`: [1, h, T, d] and [1, kv heads, T, d] -> [1, T, h, d]."""
    from torch.nn.attention.varlen import varlen_attn

    left = (
        -1 if window is None else window - 1 if causal else window
    )  # the kernel does not count the token itself
    out = varlen_attn(
        *(part[0].transpose(0, 1) for part in (query, key, value)),  # [T, h, d] and [T, kv heads, d]
        documents.offsets,
        documents.offsets,
        documents.longest,
        documents.longest,
        scale=scaling,
        window_size=(left, 0 if causal else left),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, torch.Tensor)
    return out[None]


@functools.cache
def _flash_is_right(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the variable-length kernel runs on this device and agrees with the plain one. Tried once per process."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, 96, 64, device=device, dtype=dtype, generator=generator) for heads in (4, 2, 2)
    )
    bounds = ((0, 40), (40, 96))
    documents = Documents(bounds, torch.tensor([0, 40, 96], dtype=torch.int32, device=device), 56)
    for causal in (True, False):
        try:
            fast = _flash(query, key, value, documents, None, None, causal)
        except (RuntimeError, ImportError, TypeError):
            return False
        plain = [
            _one_document(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], 0.0, None, None, causal)
            for a, b in bounds
        ]
        if not torch.allclose(fast, torch.cat(plain, dim=2).transpose(1, 2), atol=2e-2, rtol=2e-2):
            return False
    return True
