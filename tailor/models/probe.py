"""What is proven of a loaded model before it trains, on a handful of tokens.

* isolation: in a pack, no token of one document changes another document;
* agreement: documents in a pack give what the stock attention gives for each alone;
* the head: logits are exactly `head(hidden)`, or else the loss must use the model's own logits;
* the adapters: training passes through every one;
* the tiles: feed-forward blocks in tiles of tokens give what they give whole;
* the cut: a stream over several workers gives what it gives on one.
"""

from __future__ import annotations

from typing import Any

import torch

from tailor.models.activations import tiled_blocks
from tailor.models.attention import stock_attention
from tailor.models.causal import CausalModel
from tailor.models.documents import Documents, Layout, TokenBatch
from tailor.models.sequence import SequenceGroup

FIRST, SECOND = 9, 7
"""Lengths of the two probe documents, in tokens."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 8e-2, torch.float16: 8e-2}
"""Largest relative difference (of L2 norms) that rounding explains."""
SAME = 1e-6
"""The same between two runs of one arithmetic."""

# 8-bit layers choose which columns stay in fp16 from all rows of a call, so a document can change
# another's rounding (2 % measured on a model with large random weights, against 54 % within the document).
# A changed token goes to other experts, whose products are then cut otherwise (2e-7 against 1.3).


@torch.no_grad()
def packs_in_isolation(model: CausalModel, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a pack of two documents is exactly two documents."""
    ids = _ids(model, device)
    try:
        packed = model.hidden(_pack(ids, model.layout, device))
        changed = ids.clone()
        changed[FIRST - 2] = (changed[FIRST - 2] + 1) % int(ids.max())
        other = model.hidden(_pack(changed, model.layout, device))
    except (ValueError, TypeError, RuntimeError):
        return False
    leaked = _distance(packed[0, FIRST:], other[0, FIRST:])
    felt = _distance(packed[0, FIRST - 1], other[0, FIRST - 1])
    rounded_together = bool(getattr(model.base, "is_loaded_in_8bit", False))
    routed = any("experts" in name for name, _ in model.base.named_modules())
    allowed = 0.1 if rounded_together else 1e-3 if routed else 0.0
    isolated = felt > 0 and leaked <= allowed * felt
    return isolated and _agrees_with_stock(model, ids, packed, torch.float16 if rounded_together else dtype)


@torch.no_grad()
def head_is_separate(model: CausalModel, device: torch.device) -> bool:
    """Whether the model's logits are its head applied to its last hidden states."""
    batch = _alone(_ids(model, device)[:FIRST], model.layout, device)
    hidden = model.hidden(batch)
    # The same arithmetic twice, so rounding explains nothing, in any dtype. A soft cap does, however small the logits.
    return _distance(model.head(hidden), model.logits(batch)) <= SAME


@torch.no_grad()
def unused_adapters(model: CausalModel, device: torch.device) -> list[str]:
    """Names of the adapted modules that a forward pass in training does not call. Experts may not be called for."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    called: set[str] = set()
    adapted = {
        name: module for name, module in model.base.named_modules() if isinstance(module, BaseTunerLayer)
    }
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.add(name))
        for name, module in adapted.items()
    ]
    try:
        model.train()
        model.logits(_alone(_ids(model, device)[:FIRST], model.layout, device))
    finally:
        model.eval()
        for hook in hooks:
            hook.remove()
    return [name for name in adapted if name not in called and ".experts." not in name]


@torch.no_grad()
def tiling_is_exact(model: CausalModel, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether feed-forward blocks that are computed in tiles take each token by itself."""
    blocks = tiled_blocks(model.base)
    if not blocks:
        return True
    tiles = [block.tile for block in blocks]
    batch = _alone(_ids(model, device), model.layout, device)
    whole = model.hidden(batch)
    for block in blocks:
        block.tile = 3
    cut = model.hidden(batch)
    for block, tile in zip(blocks, tiles, strict=True):
        block.tile = tile
    return _close(cut, whole, _rounding(model, dtype))


@torch.no_grad()
def sequence_split_is_exact(
    model: CausalModel, sequence: SequenceGroup, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Whether two documents, cut over the group's workers, give what they give on one worker. All of them ask.

    bool[], and not a bool: some strategies hand tensors on only.
    """
    first, second = 4 * sequence.size + 1, 4 * sequence.size - 1
    positions = torch.cat([torch.arange(first), torch.arange(second)]).to(device)
    batch = _batch(_ids(model, device, first + second), positions, (first, second), "stream")
    start, stop = sequence.span(first + second)
    whole = model.hidden(batch)[:, start:stop]
    try:
        agrees = _close(model.hidden(batch.cut(sequence)), whole, _rounding(model, dtype))
    except (ValueError, TypeError, RuntimeError):
        agrees = False
    return torch.tensor(sequence.all_agree(agrees))


def _agrees_with_stock(
    model: CausalModel, ids: torch.Tensor, packed: torch.Tensor, dtype: torch.dtype
) -> bool:
    base: Any = model.base
    chosen = base.config._attn_implementation
    stock = "eager" if chosen == "eager" else stock_attention(base)
    base.set_attn_implementation(stock)
    try:
        first = model.hidden(_alone(ids[:FIRST], "rows", ids.device))
        second = model.hidden(_alone(ids[FIRST:], "rows", ids.device))
    finally:
        base.set_attn_implementation(chosen)
    alone = torch.cat([first, second], dim=1)
    return _close(packed, alone, dtype)


def _rounding(model: CausalModel, dtype: torch.dtype) -> torch.dtype:
    """Whose tolerance is right when other rows are computed together."""
    return torch.float16 if getattr(model.base, "is_loaded_in_8bit", False) else dtype


def _close(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> bool:
    return _distance(left, right) <= TOLERANCE[dtype]


def _distance(left: torch.Tensor, right: torch.Tensor) -> float:
    """Relative, in L2."""
    left, right = left.float(), right.float()
    return float((left - right).norm() / right.norm())


def _ids(model: CausalModel, device: torch.device, count: int = FIRST + SECOND) -> torch.Tensor:
    vocabulary = int(model.base.get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (count,), generator=generator).to(device)


def _pack(ids: torch.Tensor, layout: Layout, device: torch.device) -> TokenBatch:
    positions = torch.cat([torch.arange(FIRST), torch.arange(SECOND)]).to(device)
    return _batch(ids, positions, (FIRST, SECOND), layout)


def _alone(ids: torch.Tensor, layout: Layout, device: torch.device) -> TokenBatch:
    return _batch(ids, torch.arange(len(ids), device=device), (len(ids),), layout)


def _batch(
    ids: torch.Tensor, positions: torch.Tensor, lengths: tuple[int, ...], layout: Layout
) -> TokenBatch:
    ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
    bounds = tuple(zip([0, *ends[:-1]], ends, strict=True))
    offsets = torch.tensor([0, *ends], dtype=torch.int32, device=ids.device)
    documents = Documents(bounds, offsets, max(lengths)) if layout == "stream" else None
    nothing = torch.zeros(0, dtype=torch.int64, device=ids.device)
    rows = torch.zeros_like(ids)[None]
    return TokenBatch(
        ids[None], positions[None], nothing, nothing, rows, documents, nothing, nothing, nothing.bool()
    )
