"""Checks on a loaded model before training, each with a few tokens.

* isolation: in a pack, changing a token of one document does not change the hidden states of another;
* agreement: packed documents give the same as each document alone with transformers' attention;
* head: the logits are exactly `head(hidden)`; if not, the loss uses the model's own logits;
* adapters: the forward pass calls every adapted module;
* tiling: tiled feed-forward blocks give the same as untiled ones;
* sequence parallelism: a stream split over several workers gives the same as on one worker.
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
"""Lengths of the two test documents, in tokens."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 8e-2, torch.float16: 8e-2}
"""Maximum relative difference (L2 norms) that counts as rounding, by dtype."""
SAME = 1e-6
"""Maximum relative difference (L2 norms) between two runs of the same operations."""

# Two kinds of model are not isolated to the last bit, although no document attends to another:
# - 8-bit layers choose the columns that stay in fp16 from all tokens of a call, so that a document can change another's
#   rounding: by 2 % on a model with large random weights, against 54 % within the document.
# - In a mixture of experts a changed token goes to other experts, whose matrix products then have other sizes and
#   round differently: by 2e-7, against 1.3 within the document.


@torch.no_grad()
def packs_in_isolation(model: CausalModel, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether two packed documents give the same as each alone, and neither changes the other."""
    ids = _ids(model, device)  # int64[FIRST + SECOND]
    try:
        packed = model.hidden(_pack(ids, model.layout, device))  # [1, T, H]
        changed = ids.clone()
        changed[FIRST - 2] = (changed[FIRST - 2] + 1) % int(ids.max())
        other = model.hidden(_pack(changed, model.layout, device))
    except (ValueError, TypeError, RuntimeError):  # the attention does not support this model
        return False
    leaked = _distance(packed[0, FIRST:], other[0, FIRST:])
    within = _distance(packed[0, FIRST - 1], other[0, FIRST - 1])
    rounded_together = bool(getattr(model.base, "is_loaded_in_8bit", False))
    routed = any("experts" in name for name, _ in model.base.named_modules())
    allowed = 0.1 if rounded_together else 1e-3 if routed else 0.0
    isolated = within > 0 and leaked <= allowed * within  # within > 0: the change has an effect at all
    return isolated and _agrees_with_stock(model, ids, packed, torch.float16 if rounded_together else dtype)


@torch.no_grad()
def head_is_separate(model: CausalModel, device: torch.device) -> bool:
    """Whether the model's logits are its head applied to its last hidden states."""
    batch = _alone(_ids(model, device)[:FIRST], model.layout, device)
    hidden = model.hidden(batch)  # [1, T, H]
    # Both sides run the same operations, so that rounding cannot differ in any dtype. A soft cap differs, even for small
    # logits.
    return _distance(model.head(hidden), model.logits(batch)) <= SAME


@torch.no_grad()
def unused_adapters(model: CausalModel, device: torch.device) -> list[str]:
    """Names of the adapted modules that a forward pass in training mode does not call.

    Experts are not counted: a few tokens do not reach all of them.
    """
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
    """Whether tiled feed-forward blocks give the same as untiled ones: they process each token independently."""
    blocks = tiled_blocks(model.base)
    if not blocks:
        return True
    tiles = [block.tile for block in blocks]
    batch = _alone(_ids(model, device), model.layout, device)
    untiled = model.hidden(batch)  # [1, T, H]: the 16 tokens fit in one tile
    for block in blocks:
        block.tile = 3
    tiled = model.hidden(batch)  # [1, T, H], in 6 tiles
    for block, tile in zip(blocks, tiles, strict=True):
        block.tile = tile
    return _close(tiled, untiled, _rounding(model, dtype))


@torch.no_grad()
def sequence_split_is_exact(
    model: CausalModel, sequence: SequenceGroup, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Whether two documents split over the group's workers give the same as on one worker. A collective call.

    Returns bool[] and not a bool, because `Strategy.forward` returns tensors only. The lengths are
    odd, so that the border between the documents lies within a worker's part.
    """
    first, second = 4 * sequence.size + 1, 4 * sequence.size - 1
    positions = torch.cat([torch.arange(first), torch.arange(second)]).to(device)  # int64[T]
    batch = _batch(_ids(model, device, first + second), positions, (first, second), "stream")
    start, stop = sequence.span(first + second)
    expected = model.hidden(batch)[:, start:stop]  # [1, T / N, H]
    try:
        agrees = _close(model.hidden(batch.cut(sequence)), expected, _rounding(model, dtype))
    except (ValueError, TypeError, RuntimeError):
        agrees = False
    return torch.tensor(sequence.all_agree(agrees))


def _agrees_with_stock(
    model: CausalModel, ids: torch.Tensor, packed: torch.Tensor, dtype: torch.dtype
) -> bool:
    """Whether `packed`, [1, T, H], is what transformers' attention gives for each document alone."""
    base: Any = model.base
    chosen = base.config._attn_implementation
    stock = "eager" if chosen == "eager" else stock_attention(base)
    base.set_attn_implementation(stock)
    try:
        first = model.hidden(_alone(ids[:FIRST], "rows", ids.device))
        second = model.hidden(_alone(ids[FIRST:], "rows", ids.device))
    finally:
        base.set_attn_implementation(chosen)
    alone = torch.cat([first, second], dim=1)  # [1, T, H]
    return _close(packed, alone, dtype)


def _rounding(model: CausalModel, dtype: torch.dtype) -> torch.dtype:
    """The dtype whose tolerance applies when a call has other tokens: 8-bit layers compute in fp16 and choose its columns
    from all of them."""
    return torch.float16 if getattr(model.base, "is_loaded_in_8bit", False) else dtype


def _close(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> bool:
    return _distance(left, right) <= TOLERANCE[dtype]


def _distance(left: torch.Tensor, right: torch.Tensor) -> float:
    """L2 norm of the difference, relative to that of `right`."""
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
    """One row of documents without targets. ids, positions: int64[T]."""
    ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
    bounds = tuple(zip([0, *ends[:-1]], ends, strict=True))
    offsets = torch.tensor([0, *ends], dtype=torch.int32, device=ids.device)
    documents = Documents(bounds, offsets, max(lengths)) if layout == "stream" else None
    empty = torch.zeros(0, dtype=torch.int64, device=ids.device)  # no targets
    rows = torch.zeros_like(ids)[None]  # int64[1, T]
    return TokenBatch(ids[None], positions[None], empty, empty, rows, documents, empty, empty, empty.bool())
