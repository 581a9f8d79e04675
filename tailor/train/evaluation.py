"""The method's loss and metrics on the evaluation split."""

from __future__ import annotations

from typing import Any

import torch

from tailor.train.session import Session
from tailor.train.step import SessionContext, StopRequested, prepass_mean, read_micro_batches


@torch.no_grad()
def evaluate(session: Session, step: int) -> dict[str, Any] | None:
    """One record over the whole evaluation split; every rank takes a share and gets the same numbers.

    None, on every rank, when one of them was asked to stop during the evaluation.
    """
    model, method, batches = session.model, session.method, session.evaluation
    collator, context = session.collator("evaluation"), SessionContext(session, None)
    denominator = supervised = 0
    was_training = model.training
    model.eval()
    try:
        for batch in batches.evaluation():
            own = method.denominator(batches, batch)
            # Read twice rather than kept: an evaluation may be one batch of every row.
            mean = prepass_mean(session, read_micro_batches(session, batches, collator, batch), own)
            micro_batches = read_micro_batches(session, batches, collator, batch)
            method.measure(context, batches, batch, micro_batches, mean)
            denominator, supervised = denominator + own, supervised + batches.supervised_tokens(batch)
    except StopRequested:
        return None
    finally:
        model.train(was_training)
    sums = context.totals.over_workers(session.host.world)
    return {
        "kind": "evaluation",
        "step": step,
        "loss": sums["loss"] / denominator,
        **method.metrics(sums, denominator),
        "supervised_tokens": supervised,
    }
