"""Single operations for `gpu.py`, with the shapes of an 8B Llama: each function is a part, which yields lines.

Milliseconds are those of a forward and a backward pass together (median).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.benchmark import Timer

from tailor.models.attention import documents_attention
from tailor.models.documents import Documents
from tailor.models.loss import TILE_BYTES, summed_cross_entropy
from tests.helpers.live_bytes import measured


@dataclass(frozen=True)
class Shape:
    tokens: int
    documents: tuple[int, ...]
    """Tokens of each of a long pack's documents, once many and once one."""
    heads: int
    key_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocabulary: int
    seconds: float
    """Minimum duration of a measurement."""


SHAPES = {
    "cuda": Shape(16384, (512, 2048, 16384), 32, 8, 128, 4096, 14336, 128256, 0.5),
    "cpu": Shape(64, (16, 64), 4, 2, 16, 64, 128, 512, 0.0),
}


def attention(folder: Path, device: torch.device) -> Iterator[dict[str, Any]]:
    """tailor's attention over the documents of a pack, beside sdpa over the whole pack, which isolates no document, and sdpa
    with the mask of the documents."""
    shape = SHAPES[device.type]
    sizes = [(shape.heads, shape.head_dim), *[(shape.key_heads, shape.head_dim)] * 2]
    parts = [
        torch.randn(1, heads, shape.tokens, size, device=device, dtype=torch.bfloat16, requires_grad=True)
        for heads, size in sizes
    ]
    rows = torch.arange(shape.tokens, device=device)
    module = nn.Module()

    def sdpa(mask: torch.Tensor | None) -> torch.Tensor:
        return functional.scaled_dot_product_attention(
            *parts, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )

    whole = milliseconds(lambda: sdpa(None), parts, device)
    for length in shape.documents:
        documents = Documents.packed([length] * (shape.tokens // length), device)
        mask = (rows[:, None] >= rows) & (rows[:, None] // length == rows // length)  # bool[T, T]

        def packed(documents: Documents = documents) -> torch.Tensor:
            return documents_attention(module, *parts, None, documents=documents)[0]

        yield {
            "tokens": shape.tokens,
            "document": length,
            "tailor_ms": milliseconds(packed, parts, device),
            "sdpa_whole_pack_ms": whole,
            "sdpa_mask_ms": milliseconds(lambda mask=mask: sdpa(mask), parts, device),
        }


def nf4(folder: Path, device: torch.device) -> Iterator[dict[str, Any]]:
    """A frozen linear layer, hidden to intermediate: the gradient is that of its input."""
    from bitsandbytes.nn import Linear4bit

    shape = SHAPES[device.type]
    kinds: dict[str, nn.Module] = {
        "bf16": nn.Linear(shape.hidden, shape.intermediate, bias=False, dtype=torch.bfloat16),
        "nf4": Linear4bit(
            shape.hidden,
            shape.intermediate,
            bias=False,
            compute_dtype=torch.bfloat16,
            compress_statistics=True,
            quant_type="nf4",
        ),
    }
    layers = {name: layer.to(device).requires_grad_(False) for name, layer in kinds.items()}
    for tokens in (shape.tokens // 16, shape.tokens):
        rows = torch.randn(tokens, shape.hidden, device=device, dtype=torch.bfloat16, requires_grad=True)
        found = {
            f"{name}_ms": milliseconds(lambda layer=layer, rows=rows: layer(rows), [rows], device)
            for name, layer in layers.items()
        }
        yield {"tokens": tokens, **found}


def loss(folder: Path, device: torch.device) -> Iterator[dict[str, Any]]:
    """The loss of all tokens under a frozen head: milliseconds, and the peak of what is allocated beside its inputs."""
    shape = SHAPES[device.type]
    head = nn.Linear(shape.hidden, shape.vocabulary, bias=False, device=device, dtype=torch.bfloat16)
    head.requires_grad_(False)
    tokens = shape.tokens // 2
    hidden = torch.randn(tokens, shape.hidden, device=device, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(shape.vocabulary, (tokens,), device=device)
    tile_bytes = TILE_BYTES if device.type == "cuda" else 4 * shape.vocabulary * 16
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "tiled": lambda: summed_cross_entropy(hidden, head, targets, tile_bytes=tile_bytes),
        "all logits": lambda: functional.cross_entropy(head(hidden).float(), targets, reduction="sum"),
    }
    for name, way in ways.items():
        peak = peak_bytes(lambda way=way: torch.autograd.grad(way(), hidden), device)
        took = milliseconds(way, [hidden], device)
        yield {"way": name, "tokens": tokens, "milliseconds": took, "peak_mib": round(peak / 2**20, 1)}


def milliseconds(
    forward: Callable[[], torch.Tensor], inputs: list[torch.Tensor], device: torch.device
) -> float:
    """Of a forward pass and the backward pass to the inputs, by torch's timer, which waits for the device."""
    cotangent = torch.ones_like(forward())

    def both() -> None:
        torch.autograd.grad(forward(), inputs, cotangent)

    both()
    timer = Timer("both()", globals={"both": both})
    return round(1000 * timer.blocked_autorange(min_run_time=SHAPES[device.type].seconds).median, 3)


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    if device.type != "cuda":
        return measured(function).peak
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    return torch.cuda.max_memory_allocated() - before
