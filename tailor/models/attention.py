"""Attention over packed documents: its cost is the sum of the squared document lengths, not the square of the pack's.

Registered with transformers as `tailor_documents`. It takes a stream [1, T] of documents. On a CPU it calls the kernel
once per document, on CUDA once for all documents (variable-length flash attention). No token attends to another document,
and no T × T mask is made. Which tokens of its document a token attends to is the rule that `visibility.learn` found for the
module (`set_attention`). No mask function is registered, so that transformers makes no mask. With sequence parallelism, the
workers first exchange their tokens of all heads for all tokens of their heads (`sequence`).
"""

from __future__ import annotations

import functools
from contextlib import suppress
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from tailor.errors import ModelError
from tailor.models import recurrence, sequence, visibility
from tailor.models.documents import Documents
from tailor.models.segments import Segments
from tailor.models.visibility import Rule

NAME = "tailor_documents"


def register(*, compiled: bool = False) -> None:
    """Register `attn_implementation="tailor_documents"` with transformers. compiled: outside the graphs of compiled layers,
    for the rest of the process."""
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if compiled:
        AttentionInterface.register(NAME, torch.compiler.disable(documents_attention))
    elif NAME not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(NAME, documents_attention)


def set_attention(base: Any) -> None:
    """Set `tailor_documents` as a model's attention, and learn the rules that it follows. ValueError if it cannot follow them."""
    register()
    base.set_attn_implementation(NAME)
    try:
        visibility.learn(base)
    except visibility.NoAttention:
        if not recurrence.is_isolated(base):  # all its layers are recurrent
            raise
    with suppress(
        ValueError
    ):  # the model does not support bidirectional attention, which the check of texts reports
        visibility.learn(base, causal=False)


FLAGS = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}
"""Value of `model.attention` -> the attribute of a transformers model that allows it. All models have the others."""


def require_supported(base: Any, name: str) -> None:
    """ModelError if a model's class does not have the attention that `model.attention` names."""
    if name in FLAGS and not getattr(base, FLAGS[name], False):
        others = [other for other, flag in FLAGS.items() if getattr(base, flag, False)]
        raise ModelError(
            f"model.attention is {name}, which {type(base).__name__} does not support",
            hint=f"choose from {', '.join(['auto', *others, 'eager'])}",
        )


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
    softcap: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    widen_window: bool = False,
    segments: Segments | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it.

    query: [1, h, T, d]; key, value: [1, kv heads, T, d]; returns [1, T, h, d]. With sequence parallelism over N workers,
    the tensors hold T / N tokens, while the bounds in `documents` are those of all T. widen_window: attend to the whole
    document, whatever the module's rule. segments: of each document, instead of `is_causal`. s_aux: the module's attention
    sinks, [h]: a logit per head that takes its share of each softmax and has no value. Raises ValueError for a mask, a
    soft cap, or a window of a module whose rule is not known, on which the checks at load try another attention.
    """
    if documents is None or attention_mask is not None or softcap is not None:
        raise ValueError(
            "tailor_documents needs document bounds, and supports neither an attention mask nor a soft cap"
        )

    def rule_of(causal: bool) -> Rule:
        rule = visibility.rule_of(module, causal=causal)
        if rule is None and sliding_window is not None and not widen_window:
            raise ValueError("tailor_documents does not know the rule of a module with a sliding window")
        return Rule(causal) if rule is None or widen_window else rule

    kind = query.device.type
    # RoPE returns float32 queries and keys, and autocast does not cast the arguments of the flash kernel.
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if segments is not None:
        if documents.shared is not None:
            raise ValueError("documents that share tokens have no segments")
        pieces, order = segments.parts(documents)
        if any(rule_of(piece.causal).chunk for piece in pieces):
            raise ValueError("documents with segments do not support attention in chunks")
        outputs = [
            _attend(
                query.index_select(2, piece.queries),
                *(tensor.index_select(2, piece.keys) for tensor in (key, value)),
                piece.query_documents,
                piece.key_documents,
                rule_of(piece.causal),
                dropout,
                scaling,
                s_aux,
            )
            for piece in pieces
        ]
        return torch.cat(outputs, 1).index_select(1, order), None  # [1, T, h, d]
    rule = rule_of(is_causal is not False)
    queries = keys = documents
    if rule.chunk is not None:  # a token sees no other chunk, so that each chunk is a document of its own
        if documents.shared is not None:
            raise ValueError("documents that share tokens do not support attention in chunks")
        queries = keys = documents.chunks(rule.chunk)
        rule = Rule(rule.causal)
    if (group := documents.sequence) is not None:
        if s_aux is not None:
            raise ValueError("sequence parallelism does not split attention sinks")
        query, key, value = sequence.to_heads(group, query, key, value)  # [1, h / N, T, d] each
    if (shared := documents.shared) is not None:
        key, value = (tensor.index_select(2, shared.keys) for tensor in (key, value))  # [1, kv heads, K, d]
        keys = shared.documents
    out = _attend(query, key, value, queries, keys, rule, dropout, scaling, s_aux)
    return out if group is None else sequence.to_tokens(group, out), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: Documents,
    keys: Documents,
    rule: Rule,
    dropout: float,
    scaling: float | None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of the last tokens of documents, in a stream of q tokens, to the documents, in a stream of k tokens.

    query: [1, h, q, d]; key, value: [1, kv heads, k, d]; returns [1, q, h, d]. queries, keys: the bounds of the same documents
    in both streams. rule: without chunks.
    """
    heads, kv_heads, size = query.shape[1], key.shape[1], query.shape[-1]
    trial = (
        query.device,
        query.dtype,
        size,
        heads // kv_heads,
        scaling,
        rule.window is not None,
        rule.causal,
        queries is not keys,
    )
    if sinks is None and size == value.shape[-1] and dropout == 0.0 and _flash_is_right(*trial):
        return _flash(query, key, value, queries, keys, scaling, rule)
    # `split`, not one slice per document: the backward pass of each slice would fill a gradient of all T tokens.
    pieces = ((query, queries), (key, keys), (value, keys))
    parts = zip(
        *(tensor.split([end - start for start, end in its.bounds], dim=2) for tensor, its in pieces),
        strict=True,
    )  # [1, h, length, d] each
    whole = queries.shared is not None  # with segments, the rounding of earlier versions is kept
    out = [_one_document(*part, dropout, scaling, rule, sinks, whole) for part in parts]
    return torch.cat(out, dim=2).transpose(1, 2)  # [1, T, h, d]


def _one_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scaling: float | None,
    rule: Rule,
    sinks: torch.Tensor | None = None,
    whole: bool = False,
) -> torch.Tensor:
    """Attention of the last q of a document's n tokens. query: [1, h, q, d]; key, value: [1, kv heads, n, d]; returns [1, h, q, d].

    whole: let all n attend where q are more than half of them. The causal kernel computes half of n · n products and needs no
    mask, against q · n products and numbers of a mask.
    """
    length, last = key.shape[2], query.shape[2]
    mask = None
    needs_mask = sinks is not None or (rule.window is not None and length > rule.window)
    if whole and rule.causal and not needs_mask and last < length < 2 * last:
        query = functional.pad(query, (0, 0, length - last, 0))  # [1, h, n, d]
    if needs_mask or (rule.causal and query.shape[2] < length):
        positions = torch.arange(length, device=query.device)  # int64[n]
        mask = rule.sees(positions[length - last :, None], positions[None, :])  # bool[q, n]
    if sinks is not None:
        assert mask is not None
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        query, key, value = _with_sink(query, key, value, sinks / scaling)
        mask = functional.pad(mask, (0, 1), value=True)  # bool[q, n + 1]
    out = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=rule.causal and mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out if out.shape[2] == last else out[:, :, -last:]


def _with_sink(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, products: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Add a key without a value whose product with the queries of each head is given, [h].

    query: [1, h, q, d]; key, value: [1, kv heads, n, d]; returns [1, h, q, d + 8], [1, kv heads, n + 1, d + 8] and
    [1, kv heads, n + 1, d]. A multiple of 8 more, because kernels are slow with other widths.
    """
    own = products.to(query.dtype)[None, :, None, None].expand(-1, -1, query.shape[2], -1)  # [1, h, q, 1]
    sink = functional.one_hot(torch.tensor(key.shape[-1], device=key.device), key.shape[-1] + 8).to(key.dtype)
    key = torch.cat([functional.pad(key, (0, 8)), sink.expand(*key.shape[:2], 1, -1)], dim=2)
    return torch.cat([query, functional.pad(own, (0, 7))], dim=-1), key, functional.pad(value, (0, 0, 0, 1))


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: Documents,
    keys: Documents,
    scaling: float | None,
    rule: Rule,
) -> torch.Tensor:
    """Arguments as for `_attend`. The kernel aligns the queries of a document with the end of its keys."""
    from torch.nn.attention.varlen import varlen_attn

    # The kernel does not count the token itself.
    left = -1 if rule.window is None else rule.window - 1 if rule.causal else rule.window
    out = varlen_attn(
        *(part[0].transpose(0, 1) for part in (query, key, value)),  # [T, h, d] and [T, kv heads, d]
        queries.offsets,
        keys.offsets,
        queries.longest,
        keys.longest,
        scale=scaling,
        window_size=(left, 0 if rule.causal else left),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, torch.Tensor)
    return out[None]


TRIAL = (1, 300, 40)
"""Lengths of the documents that the flash kernel is tried on, in tokens: more than two of its blocks of 128, and less than one."""
TRIAL_WINDOW = 150
"""Tokens: more than a block of the kernel, and less than the longest document of the trial."""
TRIAL_TOLERANCE = 2e-2
"""Maximum relative difference (L2 norms) that counts as rounding to 16 bits. A window that is one token off gives 4e-2."""


@functools.cache
def _flash_is_right(device: torch.device, dtype: torch.dtype, *kind: Any) -> bool:
    """Whether the variable-length kernel runs on this device and agrees with the plain one. kind: as for `_flash_agrees`.

    Tried once per process for each kind of attention that a model has, in the worker that trains.
    """
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    try:
        return _flash_agrees(device, dtype, *kind)
    except (RuntimeError, ImportError, TypeError):
        return False


def _flash_agrees(
    device: torch.device,
    dtype: torch.dtype,
    size: int,
    group: int,
    scaling: float | None,
    window: bool,
    causal: bool,
    fewer_queries: bool = False,
) -> bool:
    """Whether the output and gradients of the variable-length kernel are those of the plain one in float32.

    size: of a head; group: query heads per key head. fewer_queries: the queries are the second half of each document.
    """
    keys = Documents.packed(TRIAL, device)
    asked = [length - length // 2 if fewer_queries else length for length in TRIAL]
    queries = Documents.packed(asked, device)
    rule = Rule(causal, window=TRIAL_WINDOW if window else None)
    generator = torch.Generator(device).manual_seed(0)
    shapes = [
        (1, heads, tokens, size)
        for heads, tokens in ((2 * group, sum(asked)), (2, sum(TRIAL)), (2, sum(TRIAL)))
    ]
    inputs = [torch.randn(shape, device=device, generator=generator).to(dtype) for shape in shapes]
    cotangent = torch.randn(1, sum(asked), 2 * group, size, device=device, generator=generator)

    def results(fast: bool) -> list[torch.Tensor]:
        query, key, value = parts = [
            part.to(dtype if fast else torch.float32).detach().requires_grad_() for part in inputs
        ]
        if fast:
            out = _flash(query, key, value, queries, keys, scaling, rule)
        else:
            bounds = zip(queries.bounds, keys.bounds, keys.bounds, strict=True)
            cut = [
                [part[:, :, slice(*span)] for part, span in zip(parts, spans, strict=True)]
                for spans in bounds
            ]
            out = torch.cat([_one_document(*part, 0.0, scaling, rule) for part in cut], dim=2).transpose(1, 2)
        return [out, *torch.autograd.grad(out, parts, cotangent.to(out.dtype))]

    # Hooks of its own: activation checkpointing would count the tensors of a trial within a checkpointed layer.
    own_hooks = saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False), own_hooks:
        pairs = zip(results(True), results(False), strict=True)
        return all(
            bool((fast.float() - plain).norm() <= TRIAL_TOLERANCE * plain.norm()) for fast, plain in pairs
        )
