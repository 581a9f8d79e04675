"""Checks on a loaded model before training, each with a few tokens.

* isolation: in a pack, changing a token of one document does not change the hidden states of another;
* agreement: packed documents give the same as each document alone with transformers' attention, and the same gradients;
* head: the logits are exactly `head(hidden)`; if not, the loss uses the model's own logits;
* adapters: the forward pass calls every adapted module;
* tiling: tiled feed-forward blocks give the same as untiled ones;
* sequence parallelism: a stream split over several workers gives the same as on one worker;
* shared prefixes: two documents that share their first tokens give the same as apart;
* skipped positions (`train.pose`): they have an effect, and no new document begins after a skip.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tailor.models import attention, visibility
from tailor.models.activations import tiled_blocks
from tailor.models.attention import stock_attention
from tailor.models.causal import CausalModel
from tailor.models.collator import Document, collate, targets_of
from tailor.models.decoder import has_head
from tailor.models.documents import STREAM_MULTIPLE, Documents, Layout, TokenBatch
from tailor.models.sequence import SequenceGroup
from tailor.models.visibility import SHORT

FIRST, SECOND = 9, 7
"""Lengths of the two test documents, in tokens. Both are longer than SHORT, to which windows and chunks are shortened."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 8e-2, torch.float16: 8e-2}
"""Maximum relative difference (L2 norms) that counts as rounding, by dtype."""
SAME = 1e-6
"""Maximum relative difference (L2 norms) between two runs of the same operations."""

# Two kinds of model are not isolated to the last bit, although no document attends to another:
# - On GPUs, 8-bit layers choose the columns that stay in fp16 from all tokens of a call, so that a document can change another's
#   rounding: by 2 % on a model with large random weights, against 54 % within the document.
# - In a mixture of experts a changed token goes to other experts, whose matrix products then have other sizes and
#   round differently: by 2e-7, against 1.3 within the document.


@torch.no_grad()
def packs_in_isolation(
    model: CausalModel, device: torch.device, dtype: torch.dtype, *, tokens: int = 0
) -> bool:
    """Whether two packed documents give the same as each alone, and neither changes the other.

    The documents are longer than every window and chunk of the model, which are shortened for the check. tokens: maximum of
    a forward pass in training.
    """
    try:
        if not _is_isolated(model, device, dtype, (FIRST, SECOND)):
            return False
        longest = _longest_unshortened(model, device)
        with visibility.shortened(model.base, tokens=tokens):
            return _is_isolated(model, device, dtype, (FIRST + longest, SECOND + longest))
    except (ValueError, TypeError, RuntimeError):  # the attention does not support this model
        return False


def _longest_unshortened(model: CausalModel, device: torch.device) -> int:
    """The longest window or chunk that `visibility.shortened` does not shorten, in tokens; 0 without.

    Modules may keep a length elsewhere, such as in a buffer. ValueError if a rule has another form when it is shortened.
    """
    base = model.base
    try:
        full = visibility.learned(base)
        with visibility.shortened(base):
            short = visibility.learned(base)
    except ValueError:  # no transformers masks
        full, short = {}, {}
    if any(rule.form != full[name].form for name, rule in short.items()):
        raise ValueError("a shortened rule has another form")
    longest = max((rule.reach for rule in short.values() if rule.reach > SHORT), default=0)
    for key, length in visibility.local_lengths(base).items():
        if length not in {rule.reach for rule in full.values()}:
            before = _states(model, device)
            with visibility.shortened(base, keys=(key,)):
                has_effect = _distance(_states(model, device), before) > SAME
            longest = longest if has_effect else max(longest, length)
    return longest


def _is_isolated(
    model: CausalModel, device: torch.device, dtype: torch.dtype, lengths: tuple[int, int]
) -> bool:
    """`packs_in_isolation` for two documents of the given lengths, with the model as it is."""
    ids = _ids(model, device, sum(lengths))  # int64[T]
    packed = model.hidden(_pack(ids, lengths, model.layout))  # [1, T, H]
    rounded_together = _rounds_together(model, device)
    return _is_unaffected(model, device, ids, lengths, packed) and _agrees_with_stock(
        model, ids, lengths, packed.shape[-1], torch.float16 if rounded_together else dtype
    )


def _is_unaffected(
    model: CausalModel,
    device: torch.device,
    ids: torch.Tensor,
    lengths: tuple[int, int],
    packed: torch.Tensor,
) -> bool:
    """Whether a change in the first of two packed documents leaves the second as it is. packed: [1, T, H], without the change."""
    first = lengths[0]
    changed = ids.clone()
    changed[first - 2] = (changed[first - 2] + 1) % int(ids.max())
    other = model.hidden(_pack(changed, lengths, model.layout))
    leaked = _distance(packed[0, first:], other[0, first:])
    within = _distance(packed[0, first - 1], other[0, first - 1])
    routed = any("experts" in name for name, _ in model.base.named_modules())
    allowed = 0.1 if _rounds_together(model, device) else 1e-3 if routed else 0.0
    return within > 0 and leaked <= allowed * within  # within > 0: the change has an effect at all


@torch.no_grad()
def documents_are_apart(model: CausalModel, device: torch.device) -> torch.Tensor:
    """Whether a packed document leaves the next one as it is. bool[], because `Strategy.forward` returns tensors only.

    For weights that are sharded after a full copy passed `packs_in_isolation`.
    """
    lengths = (FIRST, SECOND)
    ids = _ids(model, device, sum(lengths))  # int64[T]
    packed = model.hidden(_pack(ids, lengths, model.layout))  # [1, T, H]
    return torch.tensor(_is_unaffected(model, device, ids, lengths, packed))


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
        (model.logits if has_head(model.base) else model.hidden)(
            _alone(_ids(model, device)[:FIRST], model.layout, device)
        )
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
    return _close(tiled, untiled, _rounding(model, device, dtype))


@torch.no_grad()
def sequence_split_is_exact(
    model: CausalModel, sequence: SequenceGroup, device: torch.device, dtype: torch.dtype, tokens: int = 0
) -> torch.Tensor:
    """Whether two documents split over the group's workers give the same as on one worker. A collective call.

    Returns bool[] and not a bool, because `Strategy.forward` returns tensors only. The lengths are
    odd, so that the border between the documents lies within a worker's part. They exceed SHORT, to which the rules are
    shortened. tokens: maximum of a forward pass in training.
    """
    first, second = 4 * sequence.size + 1, 4 * sequence.size - 1
    positions = torch.cat([torch.arange(first), torch.arange(second)]).to(device)  # int64[T]
    batch = _batch(_ids(model, device, first + second), positions, (first, second), "stream")
    start, stop = sequence.span(first + second)
    with visibility.short_rules(model.base, tokens=tokens):
        expected = model.hidden(batch)[:, start:stop]  # [1, T / N, H]
        try:
            agrees = _close(model.hidden(batch.cut(sequence)), expected, _rounding(model, device, dtype))
        except (ValueError, TypeError, RuntimeError):
            agrees = False
    return torch.tensor(sequence.all_agree(agrees))


@torch.no_grad()
def prefixes_are_shareable(
    model: CausalModel, device: torch.device, dtype: torch.dtype, tokens: int = 0
) -> torch.Tensor:
    """Whether two documents that share their first tokens give the same as apart. bool[], because `Strategy.forward` returns
    tensors only.

    The common tokens and those of each document exceed SHORT, to which the rules are shortened. Compared are the tokens of each
    document by itself: among all tokens, the error of a few would pass for rounding. tokens: maximum of a forward pass in training.
    """
    if model.layout != "stream" or model.base.config._attn_implementation != attention.NAME:
        return torch.tensor(False)
    count = STREAM_MULTIPLE  # the stream is shorter with than without one of the copies
    ids = _ids(model, device, count + FIRST + SECOND).cpu().numpy()  # int64[n]
    pair = [
        Document(part, targets_of(part, np.array([[count, len(part)]])))
        for part in (ids[: count + FIRST], np.concatenate([ids[:count], ids[count + FIRST :]]))
    ]

    def states(share: bool) -> tuple[torch.Tensor, ...]:
        """Hidden states that predict the tokens of each document's own, [S, H]."""
        batch = collate([pair], "stream", share_prefixes=share).to(device)
        return model.at_predictions(batch)[0].split(batch.supervised.tolist())

    with visibility.short_rules(model.base, tokens=tokens):
        apart = states(share=False)
        try:
            shared = states(share=True)
        except (ValueError, TypeError, RuntimeError):  # the model or its attention does not support it
            return torch.tensor(False)
    rounding = _rounding(model, device, dtype)
    return torch.tensor(all(_close(*both, rounding) for both in zip(shared, apart, strict=True)))


@torch.no_grad()
def positions_have_effect(model: CausalModel, device: torch.device) -> torch.Tensor:
    """Whether position ids that skip within a document change its hidden states, and tokens after the skip still attend to
    those before it. bool[], because `Strategy.forward` returns tensors only."""
    ids = _ids(model, device)  # int64[T]
    plain = torch.arange(len(ids), device=device)
    skipped = plain + SHORT * (plain >= 2)
    changed = ids.clone()
    changed[0] = (ids[0] + 1) % int(ids.max())
    states = [
        model.hidden(replace(_batch(*of, (len(ids),), model.layout), skips=True))[0, 2:]
        for of in ((ids, plain), (ids, skipped), (changed, skipped))
    ]  # [T - 2, H] each
    return torch.tensor(all(_distance(states[1], other) > SAME for other in (states[0], states[2])))


def _agrees_with_stock(
    model: CausalModel, ids: torch.Tensor, lengths: tuple[int, int], width: int, dtype: torch.dtype
) -> bool:
    """Whether packed documents have the hidden states and gradients that transformers' attention gives each alone.

    width: H.
    """
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(len(ids), width, generator=generator).to(ids.device)  # [T, H]
    packed = _with_gradient(model, _pack(ids, lengths, model.layout), cotangent)
    base: Any = model.base
    chosen = base.config._attn_implementation
    base.set_attn_implementation("eager" if chosen == "eager" else stock_attention(base))
    try:
        parts = zip(ids.split(lengths), cotangent.split(lengths), strict=True)
        alone = [_with_gradient(model, _alone(some, "rows", ids.device), part) for some, part in parts]
    finally:
        base.set_attn_implementation(chosen)
    # [1, T, H] each: hidden states, and gradients of the embedded tokens
    return all(
        _close(together, torch.cat(apart, dim=1), dtype)
        for together, apart in zip(packed, zip(*alone, strict=True), strict=True)
    )


def _with_gradient(
    model: CausalModel, batch: TokenBatch, cotangent: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(last hidden states, gradient of their product with `cotangent` [T, H] by the embedded tokens), [1, T, H] each."""
    embedded: list[torch.Tensor] = []

    def as_leaf(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    handle = model.base.get_input_embeddings().register_forward_hook(as_leaf)
    try:
        with torch.enable_grad():
            hidden = model.hidden(batch)  # [1, T, H]
            (gradient,) = torch.autograd.grad((hidden[0].float() * cotangent).sum(), embedded)
    finally:
        handle.remove()
    return hidden.detach(), gradient


def _states(model: CausalModel, device: torch.device) -> torch.Tensor:
    """Last hidden states of a document of FIRST tokens, [1, FIRST, H]."""
    return model.hidden(_alone(_ids(model, device, FIRST), model.layout, device))


def _rounding(model: CausalModel, device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype whose tolerance applies when a call has other tokens."""
    return torch.float16 if _rounds_together(model, device) else dtype


def _rounds_together(model: CausalModel, device: torch.device) -> bool:
    """Whether the rounding of a token depends on the others of a call: the 8-bit layers of GPUs compute some columns in
    fp16, and choose these from all tokens."""
    return device.type != "cpu" and bool(getattr(model.base, "is_loaded_in_8bit", False))


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


def _pack(ids: torch.Tensor, lengths: tuple[int, int], layout: Layout) -> TokenBatch:
    positions = torch.cat([torch.arange(length, device=ids.device) for length in lengths])  # int64[T]
    return _batch(ids, positions, lengths, layout)


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
