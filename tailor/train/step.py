"""One optimizer step, from this worker's rows to the updated weights.

Start reading at `StepRunner.step`. `tailor.data` makes the batches, the method computes the losses, and the strategy runs
passes and updates. This file distributes micro-batches over the workers and sums losses and statistics.
docs/design/one-step.md follows one batch through all of them.
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
from tailor.models.collator import Collator
from tailor.models.documents import TokenBatch
from tailor.train.checkpoint import State
from tailor.train.schedule import learning_rate
from tailor.train.session import Session

T = TypeVar("T")
STOPPING, COMPUTED = "stopping", "computed"
"""Names of two sums over the workers: those that were asked to stop, and the tokens of their passes."""


@dataclass(frozen=True)
class StepResult:
    """Result of a step, the same on every worker."""

    record: dict[str, Any]
    diverged: bool
    """The loss or the gradient norm was out of bounds, so the update was skipped."""
    stop: bool
    """A worker was asked to stop."""
    tokens: int
    """Tokens that all workers computed, without padding. Those of a prompt that two answers share count once."""


class StepRunner:
    """Runs the steps of a session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.strategy = session.strategy

    def restore(self, state: State) -> None:
        """Load the state of the fp16 gradient scaler from a checkpoint's state."""
        self.strategy.scaler.load_state_dict(state.scaler)

    def remember(self, state: State) -> None:
        """Store the state of the fp16 gradient scaler in `state`, for a checkpoint."""
        state.scaler = self.strategy.scaler.state_dict()

    def step(self, step: int, micro_batches: list[MicroBatch]) -> StepResult:
        """Run the forward and backward passes of this worker's micro-batches, then one update. step: from 0.

        The loss is summed over the micro-batches of all workers and divided by the denominator of the global batch, so that
        it depends neither on the micro-batch size nor on the number of workers.
        """
        session, plan = self.session, self.session.plan
        batch = session.batches.batch(step)
        denominator = max(1, session.method.denominator(session.batches, batch))
        mean_of_prepass = prepass_mean(session, micro_batches, denominator)
        context = SessionContext(session, step)
        session.method.backward(context, session.batches, batch, micro_batches, mean_of_prepass)

        computed = sum(micro.batch.input_ids.numel() for micro in micro_batches if not micro.is_padding)
        computed *= plan.sequence_parallel  # a worker has T / N tokens of each stream; `tokens` counts all T
        real = sum(micro.tokens for micro in micro_batches)
        # The workers agree on stopping in this all-reduce, which the losses need anyway.
        context.totals.add_number(STOPPING, session.host.stopping())
        context.totals.add_number(COMPUTED, real / plan.sequence_parallel)
        sums = context.totals.over_workers(session.host.world)
        stopping, tokens = sums.pop(STOPPING), sums.pop(COMPUTED)

        loss = sums["loss"] / denominator
        norm = self.strategy.gradient_norm()
        diverged = self._diverged(loss, norm)
        rate = learning_rate(plan.optim, step, plan.steps, plan.warmup_steps, plan.decay_steps)
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
            "padding": 1 - real / computed if computed else 0.0,
        }
        if diverged:
            record["diverged"] = True
        elif not math.isfinite(norm):
            record["overflowed"] = True  # fp16 only: the gradient scaler skipped the update
        return StepResult(record, diverged, bool(stopping), round(tokens))

    def _diverged(self, loss: float, norm: float) -> bool:
        limit = self.session.plan.divergence.grad_norm
        if not math.isfinite(loss):
            return True
        if not math.isfinite(norm):
            # In fp16 an overflow is normal: the scaler halves its scale. Below 1, the gradient itself is out of range.
            return self.session.plan.precision != "fp16" or self.strategy.scaler.get_scale() < 1
        return limit is not None and norm > limit


def read_micro_batches(
    session: Session, batches: Batches, collator: Collator, batch: Batch
) -> Iterator[MicroBatch]:
    """Read this worker's micro-batches of a batch; with sequence parallelism, its part of those of its group.

    Micro-batch i goes to group i modulo the number of groups. Every worker gets the same number of each kind: one without
    rows left gets a padding micro-batch, which is the shortest row.
    """
    method, before = session.method, 0
    rank, world = batch_group(session)
    for parts in method.cut(batches, batch, session.plan):
        if not parts:
            continue
        smallest = min(range(parts[0].start, parts[-1].stop), key=lambda row: batches.length(batch[row]))
        for index in range(rank, -(-len(parts) // world) * world, world):
            is_padding = index >= len(parts)
            part = slice(smallest, smallest + 1) if is_padding else parts[index]
            read = method.read(collator, batch, part)
            tokens = 0 if is_padding else batches.tokens(batch[part])
            if tokens and read.documents is not None:
                tokens -= read.documents.shared_tokens
            yield MicroBatch(before + index, read, is_padding, tokens)
        before += len(parts)


def batch_group(session: Session) -> tuple[int, int]:
    """(index of this worker's group, number of groups). The workers of a sequence-parallel group share each micro-batch;
    without sequence parallelism a group is one worker."""
    size = session.plan.sequence_parallel
    return session.host.rank // size, session.host.world // size


def prepass_mean(session: Session, micro_batches: Iterable[MicroBatch], denominator: int) -> float:
    """Run the method's pre-pass: its total over all workers, divided by the batch's denominator. 0 without a pre-pass."""
    if not session.method.has_prepass:
        return 0.0
    totals = Totals(session.device)
    for micro in micro_batches:
        with torch.no_grad(), session.autocast():
            part = session.strategy.forward(session.method.prepass, micro.batch.to(session.device))
            totals.add(LossSum(part), is_padding=micro.is_padding)
    return totals.over_workers(session.host.world)["loss"] / denominator


class SessionContext:
    """Implements `methods.base.StepContext` with the session's strategy.

    step: None for an evaluation, which a stop request interrupts.
    """

    def __init__(self, session: Session, step: int | None) -> None:
        self.plan, self.device = session.plan, session.device
        self.rank, self.world = session.host.rank, session.host.world
        self.totals = Totals(session.device)
        self._session, self._step = session, step

    def seed(self, number: int) -> int:
        sequence = self._session.sequence
        # Within a sequence-parallel group, each worker draws the dropout of its own tokens.
        part = () if sequence is None else (sequence.rank,)
        entropy = (self.plan.batches.seed, self._step or 0, number, *part)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def forward(self, number: int, function: Callable[..., T], *arguments: Any) -> T:
        if self._step is not None:
            torch.manual_seed(self.seed(number))
        elif stop_requested(self._session):  # all workers or none: FSDP needs all of them in each pass
            raise StopRequested
        with self._session.autocast():
            return self._session.strategy.forward(function, *(self._to_device(value) for value in arguments))

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

    def _to_device(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._to_device(item) for item in value]
        return value.to(self.device) if isinstance(value, TokenBatch) else value


class StopRequested(Exception):
    """A worker was asked to stop during an evaluation. Raised on all workers at the same pass."""


def stop_requested(session: Session) -> bool:
    """Whether any worker was asked to stop. A collective call."""
    totals = Totals(session.device)
    totals.add_number(STOPPING, session.host.stopping())
    return totals.over_workers(session.host.world)[STOPPING] > 0


class Totals:
    """Sums of the loss and the statistics over micro-batches, by name."""

    def __init__(self, device: torch.device) -> None:
        # float64, because a float32 sum of thousands of losses depends on their order. Apple's GPUs have no float64.
        self._device, self._dtype = device, torch.float32 if device.type == "mps" else torch.float64
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, sums: LossSum, *, is_padding: bool) -> None:
        """Add the sums of a micro-batch. Padding adds zeros, under the same names."""
        for name, value in {"loss": sums.loss, **sums.statistics}.items():
            addend = value.detach().to(self._device, self._dtype)
            total = self._sums.get(name, torch.zeros_like(addend))
            self._sums[name] = total + addend * float(not is_padding)

    def add_number(self, name: str, value: float) -> None:
        """Set a sum to a number of this worker."""
        self._sums[name] = torch.tensor(float(value), dtype=self._dtype, device=self._device)

    def over_workers(self, world: int) -> dict[str, float]:
        """The sums over all workers. A collective call; every worker must have the same names."""
        names = sorted(self._sums)
        values = torch.stack([self._sums[name] for name in names])  # [names], so that one all-reduce does
        if world > 1:
            dist.all_reduce(values)
        return dict(zip(names, values.tolist(), strict=True))


def divergence_error(session: Session, result: StepResult, reason: str = "") -> TrainingError:
    """The error of a run that stops because a step diverged. It names the rows of the batch. reason: why it stops."""
    number = result.record["step"]
    return TrainingError(
        f"step {number}: the loss is {result.record['loss']}, the gradient norm {result.record['grad_norm']}{reason}; "
        f"its rows: {describe_rows(session, session.batches.batch(number - 1))}",
        hint="lower optim.learning_rate, inspect these rows with `tailor data preview`, or set train.divergence.action",
    )


def describe_rows(session: Session, batch: Batch, limit: int = 8) -> str:
    """Names the data sources' rows in a batch, at most `limit` of them, for messages."""
    split = session.tokens.split("train")
    examples = [example for row in batch for example in examples_of(row)]
    named = [str(split.row_id(example)) for example in examples[:limit]]
    more = len(examples) - limit
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")
