"""The method's loss and metrics on the evaluation split."""

from __future__ import annotations

from typing import Any

import torch

from tailor.train.session import Session
from tailor.train.step import SessionContext, StopRequested, prepass_mean, read_micro_batches


@torch.no_grad()
def evaluate(session: Session, step: int) -> dict[str, Any] | None:
    """Evaluate the whole evaluation split; returns a metric record. Ranks share the work and get the same record.

    None, on every rank, if one of them was asked to stop during the evaluation.
    """
    model, method, batches = session.model, session.method, session.evaluation
    collator, context = session.collator("evaluation"), SessionContext(session, None)
    denominator = supervised = 0
    was_training = model.training
    model.eval()
    try:
        for batch in batches.evaluation():
            units = method.denominator(batches, batch)
            # The micro-batches are read twice, not kept in memory: an evaluation may be a single batch of all rows.
            mean = prepass_mean(session, read_micro_batches(session, batches, collator, batch), units)
            micro_batches = read_micro_batches(session, batches, collator, batch)
            method.measure(context, batches, batch, micro_batches, mean)
            denominator, supervised = denominator + units, supervised + batches.supervised_tokens(batch)
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
