"""The method's loss and figures on the evaluation split, each averaged over its units."""

from __future__ import annotations

from typing import Any

import torch

from tailor.train.session import Session
from tailor.train.work import STOPPING, Totals, read_share, survey


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
    surveyed = survey(session, read_share(session, batches, collator, rows), units)
    totals = Totals(session.device)
    for _, micro_batch, counts in read_share(session, batches, collator, rows):
        with session.autocast():
            totals.add(method.evaluate(model, micro_batch.to(session.device), surveyed), counts)
        if session.host.stopping():  # after a micro-batch, so that every worker has all the names
            break
    model.train(was_training)
    totals.add_number(STOPPING, session.host.stopping())
    sums = totals.over_workers(session.host.world)
    if sums.pop(STOPPING):
        return None
    return {
        "kind": "evaluation",
        "step": step,
        "loss": sums["loss"] / units,
        **method.metrics(sums, units),
        "supervised_tokens": batches.units(rows),
    }
