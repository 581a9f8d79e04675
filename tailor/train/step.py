"""One optimizer step, and what is done when it diverges."""

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
from tailor.methods import Summed
from tailor.methods.base import Work
from tailor.models.documents import Collator, TokenBatch
from tailor.train.checkpoint import State
from tailor.train.optimizer import learning_rate
from tailor.train.session import Session


@dataclass(frozen=True)
class Step:
    """What a step did. Equal on every worker."""

    record: dict[str, Any]
    diverged: bool
    """The update was left out: the loss or the gradient norm was out of bounds."""
    stop: bool
    """A worker was asked to stop."""


class Learner:
    """Makes the steps of a session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.strategy = session.strategy

    def restore(self, state: State) -> None:
        """Take the scaler back to where a checkpoint stands."""
        self.strategy.scaler.load_state_dict(state.scaler)

    def remember(self, state: State) -> None:
        """Put what a checkpoint needs of the scaler into `state`."""
        state.scaler = self.strategy.scaler.state_dict()

    def step(self, step: int, work: list[Work]) -> Step:
        """The loss is summed over the micro-batches of all workers, then divided by the units of the whole batch."""
        session, plan = self.session, self.session.plan
        batch = session.batches.batch(step)
        units = max(1, session.method.units(session.batches, batch))
        surveyed = survey(session, work, units)
        passes = Passes(session, step)
        session.method.backward(passes, session.batches, batch, work, surveyed)
        slots = sum(one.batch.input_ids.numel() * one.counts for one in work) * plan.sequence_parallel
        real = sum(one.tokens for one in work)
        passes.totals.add_number(STOPPING, session.host.stopping())
        sums = passes.totals.over_workers(session.host.world)
        stopping = sums.pop(STOPPING)
        mean = sums["loss"] / units
        norm = self.strategy.gradient_norm()
        diverged = self._diverged(mean, norm)
        rate = learning_rate(plan.optim, step, plan.steps, plan.warmup_steps)
        if diverged:
            self.strategy.skip()
        else:
            self.strategy.update(rate)
        record = {
            "kind": "train",
            "step": step + 1,
            "epoch": session.batches.progress(step + 1),
            "loss": mean,
            **session.method.metrics(sums, units),
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens": session.batches.tokens(batch),
            "supervised_tokens": session.batches.units(batch),
            "padding": 1 - real / slots if slots else 0.0,
        }
        if diverged:
            record["diverged"] = True
        elif not math.isfinite(norm):
            record["overflowed"] = True  # in fp16: the scaler left the update out
        return Step(record, diverged, stopping)

    def _diverged(self, loss: float, norm: float) -> bool:
        limit = self.session.plan.divergence.grad_norm
        if not math.isfinite(loss):
            return True
        if not math.isfinite(norm):
            # In fp16 an overflow of the scaled gradients is the scaler's to mend; below 1 it no longer scales them up.
            return self.session.plan.precision != "fp16" or self.strategy.scaler.get_scale() < 1
        return limit is not None and norm > limit


def divergence_error(session: Session, step: Step, why: str = "") -> TrainingError:
    """What is told when a run stops because it diverged. The rows of the batch are named."""
    number = step.record["step"]
    return TrainingError(
        f"step {number}: the loss is {step.record['loss']}, the gradient norm {step.record['grad_norm']}{why}; "
        f"its rows: {describe_rows(session, session.batches.batch(number - 1))}",
        mend="lower optim.learning_rate, look at these rows with `tailor data preview`, or set train.divergence",
    )


def describe_rows(session: Session, batch: Batch, limit: int = 8) -> str:
    """The rows of the sources that a batch is made of."""
    split = session.tokens.split("train")
    examples = [example for row in batch for example in examples_of(row)]
    named = [f"source {split.source[i]} row {split.row[i]}" for i in examples[:limit]]
    more = len(examples) - limit
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


STOPPING = "stopping"


"""Name of a sum: how many workers were asked to stop."""


def read_share(session: Session, batches: Batches, collator: Collator, batch: Batch) -> Iterator[Work]:
    """This worker's micro-batches of a batch, or its part of those of its group. Every worker gets equally many of each kind.

    A worker without one computes a small one that doesn't count, to stay in step.
    """
    method, before = session.method, 0
    rank, world = group_of(session)
    for parts in method.parts(batches, batch, session.plan):
        if not parts:
            continue
        smallest = min(range(parts[0].start, parts[-1].stop), key=lambda row: batches.length(batch[row]))
        for at in range(rank, -(-len(parts) // world) * world, world):
            counts = at < len(parts)
            part = parts[at] if counts else slice(smallest, smallest + 1)
            read = method.read(collator, batch, part)
            yield Work(before + at, read, counts, batches.tokens(batch[part]) if counts else 0)
        before += len(parts)


def group_of(session: Session) -> tuple[int, int]:
    """Which of the groups that share a batch this worker is in, and how many there are. Mostly it is alone in one."""
    together = session.plan.sequence_parallel
    return session.host.rank // together, session.host.world // together


def survey(session: Session, work: Iterable[Work], units: int) -> float:
    """Total of the method's surveys over all workers, divided by the batch's units. 0 where it asks for none."""
    if not session.method.surveys:
        return 0.0
    totals = Totals(session.device)
    for one in work:
        with torch.no_grad(), session.autocast():
            part = session.strategy.forward(session.method.survey, one.batch.to(session.device))
            totals.add(Summed(part), one.counts)
    return totals.over_workers(session.host.world)["loss"] / units


def asked_to_stop(session: Session) -> bool:
    """Whether any worker was asked to stop. All of them call this together."""
    asked = Totals(session.device)
    asked.add_number(STOPPING, session.host.stopping())
    return asked.over_workers(session.host.world)[STOPPING] > 0


class Totals:
    """The loss and the statistics of micro-batches, added up by name."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, summed: Summed, counts: bool) -> None:
        """Add a micro-batch, as zeros where it does not count."""
        for name, value in {"loss": summed.loss, **summed.statistics}.items():
            # Some accelerators have no float64.
            dtype = torch.float64 if self._device.type == "cpu" else torch.float32
            own = value.detach().to(self._device, dtype)
            self._sums[name] = self._sums.get(name, torch.zeros_like(own)) + own * float(counts)

    def add_number(self, name: str, value: float) -> None:
        """Add a number of this worker's own."""
        kind = torch.float64 if self._device.type == "cpu" else torch.float32
        self._sums[name] = torch.tensor(float(value), dtype=kind, device=self._device)

    def over_workers(self, world: int) -> dict[str, float]:
        """The sums of all workers, each of which calls this with the same names."""
        names = sorted(self._sums)
        values = torch.stack([self._sums[name] for name in names])
        if world > 1:
            dist.all_reduce(values)
        return dict(zip(names, values.tolist(), strict=True))


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
            np.random.SeedSequence((self.plan.batches.seed, self._step or 0, number, *place)).generate_state(
                1
            )[0]
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
