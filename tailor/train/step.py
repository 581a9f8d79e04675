"""One optimizer step, from this worker's rows to the updated weights.

Read it from `StepRunner.step` downwards. Batches are `tailor.data`'s, losses the method's, passes and updates the
strategy's; this file divides the work among the workers and adds up what comes back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from tailor.data.batches import Batches
from tailor.data.rows import Batch, examples_of
from tailor.errors import TrainingError
from tailor.methods import LossSum
from tailor.methods.base import MicroBatch
from tailor.models.documents import Collator, TokenBatch
from tailor.train.checkpoint import State
from tailor.train.optimizer import learning_rate
from tailor.train.session import Session

T = TypeVar("T")
STOPPING = "stopping"
"""Name of a sum: how many workers were asked to stop."""


@dataclass(frozen=True)
class StepResult:
    """What a step did. Equal on every worker."""

    record: dict[str, Any]
    diverged: bool
    """The loss or the gradient norm was out of bounds, so the update was left out."""
    stop: bool
    """A worker was asked to stop."""


class StepRunner:
    """Makes the steps of a session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.strategy = session.strategy

    def restore(self, state: State) -> None:
        """Set the gradient scaler as a checkpoint holds it."""
        self.strategy.scaler.load_state_dict(state.scaler)

    def remember(self, state: State) -> None:
        """Put the gradient scaler into `state`, for a checkpoint."""
        state.scaler = self.strategy.scaler.state_dict()

    def step(self, step: int, micro_batches: list[MicroBatch]) -> StepResult:
        """Forward and backward passes of all micro-batches, then one update. step: from 0.

        The loss is summed over the micro-batches of all workers and divided by the denominator of the whole batch, so
        it does not depend on how the batch is cut.
        """
        session, plan = self.session, self.session.plan
        batch = session.batches.batch(step)
        denominator = max(1, session.method.denominator(session.batches, batch))
        mean_of_prepass = prepass_mean(session, micro_batches, denominator)
        context = SessionContext(session, step)
        session.method.backward(context, session.batches, batch, micro_batches, mean_of_prepass)

        slots = sum(one.batch.input_ids.numel() for one in micro_batches if not one.is_padding)
        slots *= plan.sequence_parallel
        real = sum(one.tokens for one in micro_batches)
        # Workers agree on stopping here, in the one all-reduce that a step needs anyway.
        context.totals.add_number(STOPPING, session.host.stopping())
        sums = context.totals.over_workers(session.host.world)
        stopping = sums.pop(STOPPING)

        loss = sums["loss"] / denominator
        norm = self.strategy.gradient_norm()
        diverged = self._diverged(loss, norm)
        rate = learning_rate(plan.optim, step, plan.steps, plan.warmup_steps)
        if diverged:
            self.strategy.skip()
        else:
            self.strategy.update(rate)
        record = {
            "kind": "train",
            "step": step + 1,
            "epoch": session.batches.progress(step + 1),
            "loss": loss,
            **session.method.metrics(sums, denominator),
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens": session.batches.tokens(batch),
            "supervised_tokens": session.batches.supervised_tokens(batch),
            "padding": 1 - real / slots if slots else 0.0,
        }
        if diverged:
            record["diverged"] = True
        elif not math.isfinite(norm):
            record["overflowed"] = True  # in fp16: the scaler left the update out
        return StepResult(record, diverged, stopping)

    def _diverged(self, loss: float, norm: float) -> bool:
        limit = self.session.plan.divergence.grad_norm
        if not math.isfinite(loss):
            return True
        if not math.isfinite(norm):
            # In fp16 the scaler lowers its scale after an overflow. Below 1 it has nothing left to lower.
            return self.session.plan.precision != "fp16" or self.strategy.scaler.get_scale() < 1
        return limit is not None and norm > limit


def read_micro_batches(
    session: Session, batches: Batches, collator: Collator, batch: Batch
) -> Iterator[MicroBatch]:
    """This worker's micro-batches of a batch, or its part of those of its sequence-parallel group.

    Every worker gets equally many of each kind. A worker without rows gets a small padding micro-batch.
    """
    method, before = session.method, 0
    rank, world = batch_group(session)
    for parts in method.cut(batches, batch, session.plan):
        if not parts:
            continue
        smallest = min(range(parts[0].start, parts[-1].stop), key=lambda row: batches.length(batch[row]))
        for at in range(rank, -(-len(parts) // world) * world, world):
            is_padding = at >= len(parts)
            part = slice(smallest, smallest + 1) if is_padding else parts[at]
            read = method.read(collator, batch, part)
            yield MicroBatch(before + at, read, is_padding, 0 if is_padding else batches.tokens(batch[part]))
        before += len(parts)


def batch_group(session: Session) -> tuple[int, int]:
    """(number of this worker's group, number of groups). A group shares each sequence; without sequence parallelism it is
    one worker."""
    together = session.plan.sequence_parallel
    return session.host.rank // together, session.host.world // together


def prepass_mean(session: Session, micro_batches: Iterable[MicroBatch], denominator: int) -> float:
    """Total of the method's pre-pass over all workers, divided by the batch's denominator. 0 without a pre-pass."""
    if not session.method.has_prepass:
        return 0.0
    totals = Totals(session.device)
    for one in micro_batches:
        with torch.no_grad(), session.autocast():
            part = session.strategy.forward(session.method.prepass, one.batch.to(session.device))
            totals.add(LossSum(part), is_padding=one.is_padding)
    return totals.over_workers(session.host.world)["loss"] / denominator


class SessionContext:
    """`methods.base.StepContext` by the session's strategy. step: None for an evaluation, which a stop cuts off."""

    def __init__(self, session: Session, step: int | None) -> None:
        self.plan, self.device = session.plan, session.device
        self.rank, self.world = session.host.rank, session.host.world
        self.totals = Totals(session.device)
        self._session, self._step = session, step

    def seed(self, number: int) -> int:
        sequence = self._session.sequence
        part = (
            () if sequence is None else (sequence.rank,)
        )  # each worker drops out of its own part of a sequence
        entropy = (self.plan.batches.seed, self._step or 0, number, *part)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def forward(self, number: int, function: Callable[..., T], *arguments: Any) -> T:
        if self._step is not None:
            torch.manual_seed(self.seed(number))
        elif stop_requested(self._session):  # all or none: a strategy may need every worker for each pass
            raise StopRequested
        with self._session.autocast():
            return self._session.strategy.forward(function, *(self._here(value) for value in arguments))

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        return self._session.strategy.micro_batch(last=last)

    def backward(self, loss: torch.Tensor, denominator: int = 1) -> None:
        self._session.strategy.backward(loss, denominator)

    def over_workers(self, values: torch.Tensor) -> torch.Tensor:
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def add(self, sums: LossSum, *, is_padding: bool = False) -> None:
        self.totals.add(sums, is_padding=is_padding)

    def _here(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._here(one) for one in value]
        return value.to(self.device) if isinstance(value, TokenBatch) else value


class StopRequested(Exception):
    """A worker was asked to stop during an evaluation. Raised on all workers at the same pass."""


def stop_requested(session: Session) -> bool:
    """Whether any worker was asked to stop. A collective call: all workers make it together."""
    asked = Totals(session.device)
    asked.add_number(STOPPING, session.host.stopping())
    return asked.over_workers(session.host.world)[STOPPING] > 0


class Totals:
    """The loss and the statistics of micro-batches, summed by name."""

    def __init__(self, device: torch.device) -> None:
        # float64, because float32 sums of thousands of losses depend on their order. Some accelerators have none.
        self._device, self._dtype = device, torch.float64 if device.type == "cpu" else torch.float32
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, sums: LossSum, *, is_padding: bool) -> None:
        """Add a micro-batch; a padding one adds zeros, under the same names."""
        for name, value in {"loss": sums.loss, **sums.statistics}.items():
            own = value.detach().to(self._device, self._dtype)
            self._sums[name] = self._sums.get(name, torch.zeros_like(own)) + own * float(not is_padding)

    def add_number(self, name: str, value: float) -> None:
        """Set a sum to a number of this worker."""
        self._sums[name] = torch.tensor(float(value), dtype=self._dtype, device=self._device)

    def over_workers(self, world: int) -> dict[str, float]:
        """The sums over all workers. A collective call, with the same names on each of them."""
        names = sorted(self._sums)
        values = torch.stack([self._sums[name] for name in names])
        if world > 1:
            dist.all_reduce(values)
        return dict(zip(names, values.tolist(), strict=True))


def divergence_error(session: Session, result: StepResult, why: str = "") -> TrainingError:
    """The error of a run that stops because a step diverged. It names the rows of the batch."""
    number = result.record["step"]
    return TrainingError(
        f"step {number}: the loss is {result.record['loss']}, the gradient norm {result.record['grad_norm']}{why}; "
        f"its rows: {describe_rows(session, session.batches.batch(number - 1))}",
        hint="lower optim.learning_rate, look at these rows with `tailor data preview`, or set train.divergence",
    )


def describe_rows(session: Session, batch: Batch, limit: int = 8) -> str:
    """The rows of the sources that a batch is made of."""
    split = session.tokens.split("train")
    examples = [example for row in batch for example in examples_of(row)]
    named = [f"source {split.source[i]} row {split.row[i]}" for i in examples[:limit]]
    more = len(examples) - limit
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")
