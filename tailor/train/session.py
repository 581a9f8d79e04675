"""A run on one worker, as the loop's parts and probes see it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from tailor.data.batches import Batches
from tailor.data.facts import of_split
from tailor.data.token_store import TokenStore
from tailor.encode.tokenizer_files import Original
from tailor.errors import ModelError
from tailor.methods import Method, load_method
from tailor.models import attention, probe
from tailor.models.causal import CausalModel
from tailor.models.documents import Collator
from tailor.models.load import DTYPES
from tailor.models.sequence import SequenceGroup, join
from tailor.plan import Plan
from tailor.store import Store
from tailor.train.host import Host
from tailor.train.inputs import autocast, make_collator
from tailor.train.reference import open_reference
from tailor.train.strategy import Strategy, make_strategy


@dataclass(frozen=True)
class Session:
    """Everything of a run that stays the same from its first step to its last."""

    plan: Plan
    host: Host
    run: Store
    tokens: TokenStore
    batches: Batches
    """Of the training split."""
    evaluation: Batches
    """Of the evaluation split."""
    method: Method
    strategy: Strategy
    model: CausalModel
    """To look at. It is computed with through the strategy."""
    weights: int
    """Of the whole model, trained and frozen."""
    sequence: SequenceGroup | None = None
    """The workers that hold each sequence together, where there are several."""
    tokenizer: Original | None = None
    """To be written beside the artifact. On rank 0 alone."""
    reference: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Log-probability of each example of a split under the reference model, where they were computed before."""

    @property
    def device(self) -> torch.device:
        return self.host.device

    def autocast(self) -> torch.autocast:
        """The plan's arithmetic, as a context."""
        return autocast(self.plan, self.device)

    def collator(self, name: Literal["train", "evaluation"], step: int | None = None) -> Collator:
        """Reads rows of a split for this model. step: the training step that reads them."""
        reference = self.reference.get(name)
        collator = make_collator(self.plan, self.tokens, self.model, name, reference, self.sequence)
        return replace(collator, step=step)

    def say(self, message: str) -> None:
        """One line for the user, from rank 0."""
        if self.host.rank == 0:
            self.host.report({"kind": "status", "message": message})


When = Literal["start", "evaluation", "end"]
Probe = Callable[[Session, When, int], None]
"""Called on every rank with the number of steps made: before the first one, at each evaluation, and after the last one."""


def open_session(plan: Plan, host: Host) -> Session:
    """Open the data and load the model, ready to train."""
    # Before anything dear: at the end, a tokenizer that cannot be opened would cost the whole training.
    tokenizer = Original.open(plan.model) if host.rank == 0 else None
    tokens = TokenStore.open(plan.tokens_url)
    started = time.perf_counter()
    strategy = make_strategy(plan, host)
    model = strategy.load()
    trained, total = strategy.weights()
    strategy.setup()
    sequence = join(plan.sequence_parallel)
    batches, evaluation = (of_split(tokens.split(name), plan.batches) for name in ("train", "evaluation"))
    reference, values = open_reference(
        plan, host, tokens, strategy, {"train": batches, "evaluation": evaluation}
    )
    session = Session(
        plan=plan,
        host=host,
        run=Store(plan.run_url),
        tokens=tokens,
        batches=batches,
        evaluation=evaluation,
        method=load_method(plan.method, reference),
        strategy=strategy,
        model=model,
        weights=total,
        sequence=sequence,
        tokenizer=tokenizer,
        reference=values,
    )
    if sequence is not None:
        check_sequence_split(session, sequence)
    session.say(
        f"model loaded in {time.perf_counter() - started:.1f} s: "
        f"{trained:,} of {total:,} weights are trained, {plan.precision}, {plan.strategy.name}, "
        f"{model.base.config._attn_implementation} attention"
    )
    if model.router is not None and plan.method.compares_answers:
        session.say(
            f"method {plan.method.name} compares answers alone: the balance of the experts is not in its loss"
        )
    return session


def check_sequence_split(session: Session, sequence: SequenceGroup) -> None:
    """Raises ModelError, on every worker, where the model's sequences cannot be held by several together."""
    model, dtype = session.model, DTYPES[session.plan.precision]
    taken = model.base.config._attn_implementation == attention.NAME
    arguments = (sequence, session.device, dtype)
    with torch.no_grad(), session.autocast():
        if taken and session.strategy.forward(probe.sequence_split_is_exact, *arguments):
            return
    raise ModelError(
        f"scale.sequence_parallel: {type(model.base).__name__} does not compute of a part of a sequence what it "
        "computes of the whole",
        hint="set scale.sequence_parallel: 1",
    )
