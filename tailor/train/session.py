"""A run on one worker, as the loop's parts and probes see it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from tailor.batches import Batches, BatchSpec, of_split
from tailor.methods import Method, load_method
from tailor.models.causal import CausalModel
from tailor.plan import Plan
from tailor.store import Store
from tailor.tokens import TokenStore
from tailor.train.host import Host
from tailor.train.strategy import Strategy, make_strategy


@dataclass(frozen=True)
class Session:
    """Everything of a run that stays the same from its first step to its last."""

    plan: Plan
    host: Host
    run: Store
    tokens: TokenStore
    batches: Batches
    method: Method
    strategy: Strategy
    model: CausalModel
    """To look at. It is computed with through the strategy."""
    weights: int
    """Of the whole model, trained and frozen."""

    @property
    def device(self) -> torch.device:
        return self.host.device

    def autocast(self) -> torch.autocast:
        """The plan's arithmetic, as a context."""
        dtype = torch.float16 if self.plan.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.plan.precision != "fp32")

    def say(self, message: str) -> None:
        """One line for the user, from rank 0."""
        if self.host.rank == 0:
            self.host.report({"kind": "status", "message": message})


Probe = Callable[[Session, Literal["start", "end"]], None]
"""Called on every rank before the first step and after the last one."""


def open_session(plan: Plan, host: Host) -> Session:
    """Open the data and load the model, ready to train."""
    tokens = TokenStore.open(plan.tokens_url)
    spec = BatchSpec(
        seed=plan.seed,
        max_length=plan.max_length,
        pack=plan.pack,
        batch_size=plan.batch_size,
        batch_tokens=plan.batch_tokens,
        weights=plan.weights,
        first_step=plan.first_step,
    )
    started = time.perf_counter()
    strategy = make_strategy(plan, host)
    model = strategy.load()
    trained, total = strategy.weights()
    session = Session(
        plan=plan,
        host=host,
        run=Store(plan.run_url),
        tokens=tokens,
        batches=of_split(tokens.split("train"), spec),
        method=load_method(plan.method),
        strategy=strategy,
        model=model,
        weights=total,
    )
    session.say(
        f"model loaded in {time.perf_counter() - started:.1f} s: "
        f"{trained:,} of {total:,} weights are trained, {plan.precision}, {plan.strategy.name}, "
        f"{model.base.config._attn_implementation} attention"
    )
    return session
