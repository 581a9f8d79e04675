"""Sequences over several workers: each holds a part of every stream, and for attention a part of the heads (Ulysses).

Between two attentions a token needs no other one, so a worker has T / N tokens of a stream and all that belongs to
them. Attention needs all tokens, but of one head only: one exchange gives each worker all T tokens of its heads, one
more brings the results back (DeepSpeed-Ulysses, arXiv 2309.14509). What is computed is the same as on one worker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class SequenceGroup:
    """The workers that hold a stream together. rank: this one's place among them."""

    rank: int
    size: int
    group: Any
    """torch.distributed's."""

    def span(self, length: int) -> tuple[int, int]:
        """The part of a stream of `length` tokens, which `size` divides, that this worker holds."""
        assert length % self.size == 0, (length, self.size)
        own = length // self.size
        return self.rank * own, (self.rank + 1) * own

    def all_agree(self, agrees: bool) -> bool:
        """Whether this is so on every worker of the group."""
        found: list[bool] = [False] * self.size
        dist.all_gather_object(found, agrees, group=self.group)
        return all(found)


def join(size: int) -> SequenceGroup | None:
    """This worker's group of `size` consecutive ranks; None for groups of one. Every worker calls it at the same time."""
    if size == 1:
        return None
    rank, world = dist.get_rank(), dist.get_world_size()
    assert world % size == 0, (world, size)
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, world, size)]
    return SequenceGroup(rank % size, size, groups[rank // size])


def to_heads(
    sequence: SequenceGroup, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[1, heads, T / N, d] of all heads -> [1, heads / N, T, d] of all tokens. N must divide the query's heads.

    Where N does not divide the heads of keys and values, each is given to as many workers as need it.
    """
    copies = math.lcm(key.shape[1], sequence.size) // key.shape[1]
    if copies > 1:
        key, value = (part.repeat_interleave(copies, dim=1) for part in (key, value))
    parts: tuple[torch.Tensor, ...] = _ToHeads.apply(sequence, query, key, value)  # type: ignore[assignment]
    return parts[0], parts[1], parts[2]


def to_tokens(sequence: SequenceGroup, out: torch.Tensor) -> torch.Tensor:
    """The way back, of what attention returns: [1, T, heads / N, d] -> [1, T / N, heads, d]."""
    result = _ToTokens.apply(sequence, out.transpose(1, 2))
    assert isinstance(result, torch.Tensor)
    return result.transpose(1, 2)


class _ToHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sequence: SequenceGroup, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.sequence = sequence
        return tuple(_all_tokens(sequence, parts))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        return None, *_all_heads(ctx.sequence, gradients)


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sequence: SequenceGroup, out: torch.Tensor) -> torch.Tensor:
        ctx.sequence = sequence
        return _all_heads(sequence, [out])[0]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        return None, _all_tokens(ctx.sequence, [gradient])[0]


def _all_tokens(sequence: SequenceGroup, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """[1, h, T / N, d] each -> [1, h / N, T, d], in one message to each worker."""
    views = [part[0].unflatten(0, (sequence.size, -1)).transpose(1, 2) for part in parts]  # [w, t, h, d]
    return [part.flatten(0, 1).transpose(0, 1)[None] for part in _exchange(sequence, views)]


def _all_heads(sequence: SequenceGroup, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """[1, h / N, T, d] each -> [1, h, T / N, d]."""
    views = [part[0].transpose(0, 1).unflatten(0, (sequence.size, -1)) for part in parts]  # [w, t, h, d]
    return [part.transpose(1, 2).flatten(0, 1)[None] for part in _exchange(sequence, views)]


def _exchange(sequence: SequenceGroup, views: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Send `view[w]` to worker w; what each worker sent here, in the same form.

    views: [w, t, h, d] each, of w workers with t tokens and h heads of each.
    """
    workers, own = views[0].shape[:2]
    widths = [view.shape[2] * view.shape[3] for view in views]
    sent = views[0].new_empty(workers, own, sum(widths))
    for view, place in zip(views, sent.split(widths, dim=2), strict=True):
        place.unflatten(2, tuple(view.shape[2:])).copy_(view)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=sequence.group)
    return [
        place.unflatten(2, tuple(view.shape[2:]))
        for view, place in zip(views, received.split(widths, dim=2), strict=True)
    ]
