"""One optimizer step, and what is done when it diverges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tailor.errors import TrainingError
from tailor.methods.base import Work
from tailor.rows import Batch, examples_of
from tailor.train.checkpoint import State
from tailor.train.optimizer import learning_rate
from tailor.train.passes import Passes
from tailor.train.session import Session
from tailor.train.work import STOPPING, survey


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
