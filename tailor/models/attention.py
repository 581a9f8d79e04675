"""Attention whose cost follows the documents' lengths, not the pack's.

Registered with transformers as `tailor_documents`. It takes a stream [1, T] of documents and calls
the kernel once per document (on a CPU) or once for all (CUDA's variable-length flash kernel),
so no token sees another document and no T × T mask is ever made. It is causal unless the model is called
with `is_causal=False`, as transformers' own attentions are. transformers makes no mask for an
attention that has no mask function, which is why none is registered. A stream that is cut over several workers
is exchanged for a part of the heads first.
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
    """Make `attn_implementation="tailor_documents"` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, documents_attention)


def stock_attention(base: Any) -> str:
    """The attention of transformers that knows masks, padding and caches, for a transformers model."""
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
    """query: [1, heads, T, d]; key, value: [1, kv heads, T, d]; returns [1, T, heads, d].

    Of a stream over N workers, T here is a worker's part of it; the documents' bounds are those of the whole.
    widen_window: leaves a sliding window out, for bidirectional attention.
    """
    if documents is None or attention_mask is not None or softcap is not None:
        raise ValueError("this attention takes document bounds, and neither a mask nor a soft cap")
    kind = query.device.type
    # Rotation leaves float32 queries, and autocast doesn't reach the flash kernel.
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if (group := documents.sequence) is not None:
        whole = replace(documents, sequence=None)
        parts = sequence.to_heads(group, query, key, value)
        out, _ = documents_attention(module, *parts, None, dropout, scaling, whole, sliding_window)
        return sequence.to_tokens(group, out), None
    sliding_window = None if widen_window else sliding_window or getattr(module, "sliding_window", None)
    causal = is_causal is not False
    if query.shape[-1] == value.shape[-1] and dropout == 0.0 and _flash_is_right(query.device, query.dtype):
        return _flash(query, key, value, documents, scaling, sliding_window, causal), None
    # Split, and not sliced one by one: the backward pass of a slice is as long as the whole stream.
    lengths = [end - start for start, end in documents.bounds]
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    out = [_one_document(*part, dropout, scaling, sliding_window, causal) for part in parts]
    return torch.cat(out, dim=2).transpose(1, 2), None


def _one_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
    causal: bool,
) -> torch.Tensor:
    length = query.shape[2]
    mask = None
    if window is not None and length > window:
        positions = torch.arange(length, device=query.device)
        distance = positions[:, None] - positions[None, :]
        # As transformers counts: a token's window has its own place when causal, and lies on both sides of it else.
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
    from torch.nn.attention.varlen import varlen_attn

    left = -1 if window is None else window - 1 if causal else window
    out = varlen_attn(
        *(part[0].transpose(0, 1) for part in (query, key, value)),  # [T, heads, d]
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
    """Whether the variable-length kernel runs here and agrees with the plain one, tried once."""
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
