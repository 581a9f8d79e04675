"""The method's loss and figures on the evaluation split, each averaged over its units."""

from __future__ import annotations

from typing import Any

import torch

from tailor.train.session import Session
from tailor.train.step import Passes, Stopping, read_share, survey


@torch.no_grad()
def evaluate(session: Session, step: int) -> dict[str, Any] | None:
    """One record over the whole evaluation split; every rank takes a share and gets the same numbers.

    None, on every rank, when one of them was asked to stop meanwhile.
    """
    model, method, batches = session.model, session.method, session.evaluation
    collator, passes = session.collator("evaluation"), Passes(session, None)
    units = supervised = 0
    was_training = model.training
    model.eval()
    try:
        for batch in batches.evaluation():
            own = method.units(batches, batch)
            surveyed = survey(session, read_share(session, batches, collator, batch), own)
            work = read_share(session, batches, collator, batch)
            method.measure(passes, batches, batch, work, surveyed)
            units, supervised = units + own, supervised + batches.units(batch)
    except Stopping:
        return None
    finally:
        model.train(was_training)
    sums = passes.totals.over_workers(session.host.world)
    return {
        "kind": "evaluation",
        "step": step,
        "loss": sums["loss"] / units,
        **method.metrics(sums, units),
        "supervised_tokens": supervised,
    }
