"""The method's loss and figures on the evaluation split, each averaged over its units."""

from __future__ import annotations

from typing import Any

import torch

from tailor.train.session import Session
from tailor.train.work import Totals, asked_to_stop, read_share, survey


@torch.no_grad()
def evaluate(session: Session, step: int) -> dict[str, Any] | None:
    """One record over the whole evaluation split; every rank takes a share and gets the same numbers.

    None, on every rank, when one of them was asked to stop meanwhile.
    """
    model, method, batches = session.model, session.method, session.evaluation
    collator, rows = session.collator("evaluation"), batches.rows()
    units = method.units(batches, rows)
    was_training = model.training
    model.eval()
    try:
        surveyed = survey(session, read_share(session, batches, collator, rows), units)
        totals = Totals(session.device)
        for _, micro_batch, counts in read_share(session, batches, collator, rows):
            if asked_to_stop(
                session
            ):  # all workers or none: a strategy may need every one for each micro-batch
                return None
            with session.autocast():
                summed = session.strategy.evaluate(method, micro_batch.to(session.device), surveyed)
            totals.add(summed, counts)
    finally:
        model.train(was_training)
    sums = totals.over_workers(session.host.world)
    return {
        "kind": "evaluation",
        "step": step,
        "loss": sums["loss"] / units,
        **method.metrics(sums, units),
        "supervised_tokens": batches.units(rows),
    }
