"""The state of a run on one worker that the parts of the training loop and the probes share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from tailor.data.batches import Batches
from tailor.data.facts import of_split
from tailor.data.token_store import TokenStore
from tailor.encode.tokenizer_files import Original
from tailor.errors import ModelError
from tailor.methods import Method, load_method
from tailor.models import attention, own_code, probe
from tailor.models.causal import CausalModel, Parameters
from tailor.models.collator import Collator
from tailor.models.load import DTYPES
from tailor.models.router import Router
from tailor.models.sequence import SequenceGroup, join
from tailor.plan import Plan
from tailor.store import Store
from tailor.train.host import Host
from tailor.train.inputs import autocast, make_collator
from tailor.train.reference import open_reference
from tailor.train.strategy import Strategy, make_strategy


@dataclass(frozen=True)
class Session:
    """Everything in a run that does not change between its first and its last step."""

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
    """For inspection. Forward passes go through `Strategy.forward`."""
    parameters: Parameters
    """Numbers of parameters of the model, before sharding."""
    sequence: SequenceGroup | None = None
    """The sequence-parallel group of this worker; None without sequence parallelism."""
    tokenizer: Original | None = None
    """Copied into the artifact. On rank 0 only."""
    reference: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By split: float32[examples], precomputed log-probabilities under the reference model."""

    @property
    def device(self) -> torch.device:
        return self.host.device

    def autocast(self) -> torch.autocast:
        """The autocast context for the plan's precision."""
        return autocast(self.plan, self.device)

    def collator(self, name: Literal["train", "evaluation"], step: int | None = None) -> Collator:
        """A collator that reads rows of a split for this model. step: the training step that reads them."""
        reference = self.reference.get(name)
        collator = make_collator(self.plan, self.tokens, self.model, name, reference, self.sequence)
        return replace(collator, step=step)

    def say(self, message: str, *, phase: str | None = None) -> None:
        """Report a status line to the user, from rank 0. phase: what the run does from now on, for `status.json`."""
        if self.host.rank == 0:
            record = {"kind": "status", "message": message}
            self.host.report(record if phase is None else {**record, "phase": phase})


When = Literal["start", "evaluation", "end"]
Probe = Callable[[Session, When, int], Mapping[str, float] | None]
"""A function that is called on every rank with the number of steps done: before the first step, at each evaluation, and
after the last step. It may return metrics that `train.early_stopping` can watch, on rank 0."""


def open_session(plan: Plan, host: Host) -> Session:
    """Open the data and load the model, ready to train."""
    # First, because it is fast: if opening the tokenizer failed at the end, the whole training would be lost.
    tokenizer = (
        Original.open(plan.model, trust_remote_code=own_code.granted(plan.model)) if host.rank == 0 else None
    )
    tokens = TokenStore.open(plan.tokens_url)
    started = time.perf_counter()
    strategy = make_strategy(plan, host)
    model = strategy.load()
    config = model.base.config.get_text_config()
    model.router = Router.of(config, plan.model, by_config=plan.method.trains_next_tokens)
    parameters = strategy.weights()
    strategy.setup()
    model.shares_prefixes = shares_prompts(plan, strategy, host.device)
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
        parameters=parameters,
        sequence=sequence,
        tokenizer=tokenizer,
        reference=values,
    )
    if plan.batches.pack and plan.strategy.shards_weights:
        check_isolation(session)
    if sequence is not None:
        check_sequence_split(session, sequence)
    if plan.pose is not None:
        check_positions(session)
    session.say(
        f"model loaded in {time.perf_counter() - started:.1f} s: "
        f"{parameters.trained:,} of {parameters.total:,} weights are trained, {plan.precision}, {plan.strategy.name}, "
        f"{model.base.config._attn_implementation} attention"
    )
    if plan.method.shares_prompts:
        kept = "share the tokens" if model.shares_prefixes else "have a copy each"
        session.say(f"both answers of a pair {kept} of their prompt")
    if plan.base_dropout:
        session.say(f"dropout {plan.dropout_text()}")
    if model.router is None and Router.of(config) is not None and plan.model.router_aux_loss is None:
        session.say(
            f"the load-balancing loss of the experts is not used: method {plan.method.name} does not train on next tokens; "
            "set model.router_aux_loss to use it"
        )
    return session


def shares_prompts(plan: Plan, strategy: Strategy, device: torch.device) -> bool:
    """Whether a forward pass computes the prompt of a pair of answers once. A collective call."""
    # NEFTune draws the noise of each document, and the losses of routers are means over the tokens of each answer.
    excluded = plan.method.embedding_noise or strategy.model.router is not None
    if not plan.method.shares_prompts or excluded:
        return False
    return _passes(
        plan, strategy, probe.prefixes_are_shareable, device, DTYPES[plan.precision], plan.pass_tokens
    )


def _passes(plan: Plan, strategy: Strategy, check: Callable[..., torch.Tensor], *arguments: Any) -> bool:
    """Whether the loaded model passes a check of `probe`. A collective call, without gradients, after which FSDP reshards."""
    with torch.no_grad(), autocast(plan, strategy.device):
        return bool(strategy.forward(check, *arguments))


def check_isolation(session: Session) -> None:
    """Check that the sharded model isolates packed documents, as the full model did on rank 0. Raises ModelError on every worker."""
    if _passes(session.plan, session.strategy, probe.documents_are_apart, session.device):
        return
    raise ModelError(
        f"packed documents of {type(session.model.base).__name__} affect each other under {session.plan.strategy.name}",
        hint="set data.pack: false, or scale.strategy: ddp",
    )


def check_positions(session: Session) -> None:
    """Check that a model can be trained with `train.pose`. Raises ModelError on every worker if it cannot."""
    name = type(session.model.base).__name__
    if session.plan.batches.pack and session.model.layout == "rows":
        raise ModelError(
            f"train.pose: packed documents of {name} are distinguished by their position ids, which a skip would break",
            hint="set data.pack: false, or remove train.pose",
        )
    if _passes(session.plan, session.strategy, probe.positions_have_effect, session.device):
        return
    raise ModelError(
        f"train.pose: the position ids of {name} have no effect, so none could be skipped",
        hint="remove train.pose",
    )


def check_sequence_split(session: Session, sequence: SequenceGroup) -> None:
    """Check that sequence parallelism does not change the model's results. Raises ModelError on every worker if it does."""
    model, dtype = session.model, DTYPES[session.plan.precision]
    is_supported = model.base.config._attn_implementation == attention.NAME
    arguments = (sequence, session.device, dtype, session.plan.pass_tokens)
    if is_supported and _passes(session.plan, session.strategy, probe.sequence_split_is_exact, *arguments):
        return
    raise ModelError(
        f"scale.sequence_parallel: {type(model.base).__name__} gives other results when a sequence is split over workers",
        hint="set scale.sequence_parallel: 1",
    )
