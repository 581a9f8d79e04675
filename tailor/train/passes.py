"""Forward and backward passes of one step or one evaluation, as the session's strategy makes them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from tailor.methods import Summed
from tailor.models.documents import TokenBatch
from tailor.train.session import Session
from tailor.train.work import Totals, asked_to_stop

T = TypeVar("T")


class Stopping(Exception):
    """A worker was asked to stop while an evaluation is made. Raised on all of them at the same pass."""


class Passes:
    """What a method is given (`methods.base.Passes`). step: None for an evaluation, which a stop cuts off."""

    def __init__(self, session: Session, step: int | None) -> None:
        self.plan, self.device = session.plan, session.device
        self.rank, self.world = session.host.rank, session.host.world
        self.totals = Totals(session.device)
        self._session, self._step = session, step

    def seed(self, number: int) -> int:
        sequence = self._session.sequence
        place = () if sequence is None else (sequence.rank,)  # its part of the micro-batch
        return int(
            np.random.SeedSequence((self.plan.seed, self._step or 0, number, *place)).generate_state(1)[0]
        )

    def forward(self, number: int, function: Callable[..., T], *arguments: Any) -> T:
        if self._step is not None:
            torch.manual_seed(self.seed(number))
        elif asked_to_stop(self._session):  # all or none: a strategy may need every worker for each pass
            raise Stopping
        with self._session.autocast():
            return self._session.strategy.forward(function, *(self._here(value) for value in arguments))

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        return self._session.strategy.micro_batch(last=last)

    def backward(self, loss: torch.Tensor, units: int = 1) -> None:
        self._session.strategy.backward(loss, units)

    def over_workers(self, values: torch.Tensor) -> torch.Tensor:
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def add(self, summed: Summed, counts: bool = True) -> None:
        self.totals.add(summed, counts)

    def _here(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._here(one) for one in value]
        return value.to(self.device) if isinstance(value, TokenBatch) else value
