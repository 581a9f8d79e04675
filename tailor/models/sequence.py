"""Sequence parallelism (DeepSpeed-Ulysses, arXiv 2309.14509): N workers each hold T / N tokens of a stream.

Outside attention, a token's computation needs no other token, so that each worker computes its T / N tokens alone.
Attention needs all tokens, but each head is independent: an all-to-all gives each worker all T tokens of h / N heads, and
a second one returns the results. The result is that of one worker with the whole stream. Shapes: see `tailor.models`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from tailor.machine import COLLECTIVE_TIMEOUT


@dataclass(frozen=True)
class SequenceGroup:
    """The N workers that hold a stream together. rank: of this worker in the group; size: N."""

    rank: int
    size: int
    group: Any
    """The process group of torch.distributed."""

    def span(self, length: int) -> tuple[int, int]:
        """(start, stop): the tokens of a stream that this worker holds. `length` must be a multiple of `size`."""
        assert length % self.size == 0, (length, self.size)
        part = length // self.size
        return self.rank * part, (self.rank + 1) * part

    def all_agree(self, agrees: bool) -> bool:
        """Whether `agrees` is true on every worker of the group. A collective call."""
        answers: list[bool] = [False] * self.size
        dist.all_gather_object(answers, agrees, group=self.group)
        return all(answers)


def join(size: int) -> SequenceGroup | None:
    """Make the groups of `size` consecutive ranks and return this worker's; None if size is 1. A collective call."""
    if size == 1:
        return None
    rank, world = dist.get_rank(), dist.get_world_size()
    assert world % size == 0, (world, size)
    # A new group does not inherit the default group's timeout: with NCCL it would be 10 minutes.
    groups = [
        dist.new_group(list(range(first, first + size)), timeout=COLLECTIVE_TIMEOUT)
        for first in range(0, world, size)
    ]
    return SequenceGroup(rank % size, size, groups[rank // size])


def to_heads(
    sequence: SequenceGroup, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Exchange T / N tokens of all heads for all tokens of h / N heads: [1, h, T / N, d] -> [1, h / N, T, d], three times.

    h must be a multiple of N. If the number of key and value heads is not (grouped-query attention), these heads are
    repeated, so that each worker gets those that its query heads need.
    """
    copies = math.lcm(key.shape[1], sequence.size) // key.shape[1]
    if copies > 1:
        key, value = (part.repeat_interleave(copies, dim=1) for part in (key, value))
    parts: tuple[torch.Tensor, ...] = _ToHeads.apply(sequence, query, key, value)  # type: ignore[assignment]
    return parts[0], parts[1], parts[2]


def to_tokens(sequence: SequenceGroup, out: torch.Tensor) -> torch.Tensor:
    """Exchange back the result of attention: [1, T, h / N, d] -> [1, T / N, h, d]."""
    result = _ToTokens.apply(sequence, out.transpose(1, 2))  # [1, h, T / N, d]
    assert isinstance(result, torch.Tensor)
    return result.transpose(1, 2)


class _ToHeads(torch.autograd.Function):
    """The gradient of one exchange is the other exchange."""

    @staticmethod
    def forward(ctx: Any, sequence: SequenceGroup, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.sequence = sequence
        return tuple(_all_tokens(sequence, parts))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        return None, *_all_heads(ctx.sequence, gradients)


class _ToTokens(torch.autograd.Function):
    """The gradient of one exchange is the other exchange."""

    @staticmethod
    def forward(ctx: Any, sequence: SequenceGroup, out: torch.Tensor) -> torch.Tensor:
        ctx.sequence = sequence
        return _all_heads(sequence, [out])[0]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        return None, _all_tokens(ctx.sequence, [gradient])[0]


def _all_tokens(sequence: SequenceGroup, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """[1, h, T / N, d] each -> [1, h / N, T, d] each, with one message to each worker for all parts."""
    # [N, T / N, h / N, d] each
    views = [part[0].unflatten(0, (sequence.size, -1)).transpose(1, 2) for part in parts]
    return [part.flatten(0, 1).transpose(0, 1)[None] for part in _exchange(sequence, views)]


def _all_heads(sequence: SequenceGroup, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """[1, h / N, T, d] each -> [1, h, T / N, d] each."""
    # [N, T / N, h / N, d] each
    views = [part[0].transpose(0, 1).unflatten(0, (sequence.size, -1)) for part in parts]
    return [part.transpose(1, 2).flatten(0, 1)[None] for part in _exchange(sequence, views)]


def _exchange(sequence: SequenceGroup, views: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """All-to-all: send `view[w]` to worker w, and return in `result[w]` what worker w sent, for each view.

    views: [N, T / N, h / N, d] each; h may differ between views.
    """
    workers, tokens = views[0].shape[:2]
    widths = [view.shape[2] * view.shape[3] for view in views]
    sent = views[0].new_empty(workers, tokens, sum(widths))  # [N, T / N, sum of h / N · d]
    for view, columns in zip(views, sent.split(widths, dim=2), strict=True):
        columns.unflatten(2, tuple(view.shape[2:])).copy_(view)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=sequence.group)
    return [
        columns.unflatten(2, tuple(view.shape[2:]))
        for view, columns in zip(views, received.split(widths, dim=2), strict=True)
    ]
