"""Loss, perplexity and token accuracy on the evaluation split, weighted by token."""

from __future__ import annotations

import math
from typing import Any

import torch

from tailor.batches import pack, share
from tailor.models.documents import collate
from tailor.train.session import Session


@torch.no_grad()
def evaluate(session: Session, step: int) -> dict[str, Any] | None:
    """One record over the whole evaluation split; every rank takes a share and gets the same numbers.

    None, on every rank, when one of them was asked to stop meanwhile.
    """
    plan, host, model = session.plan, session.host, session.model
    split = session.tokens.split("evaluation")
    examples = torch.arange(len(split)).numpy()
    rows = pack(examples, split.lengths, plan.max_length) if plan.pack else [(int(i),) for i in examples]
    sums = torch.zeros(3, dtype=torch.float64)  # loss, hits, targets
    was_training = model.training
    model.eval()
    # A worker without a micro-batch computes the first one, uncounted: a strategy may need all of them for each.
    for _, part in share(rows, plan.micro_batch_size, host.rank, host.world):
        if session.strategy.total(torch.tensor([float(host.stopping())], device=session.device))[0]:
            model.train(was_training)
            return None
        batch = collate(split, part or rows[:1], model.layout).to(session.device)
        with session.autocast():
            loss, hits = session.strategy.forward(session.method.evaluate, batch)
        if part:
            sums += torch.tensor([loss.item(), hits.item(), len(batch.targets)], dtype=torch.float64)
    model.train(was_training)
    loss, hits, count = session.strategy.total(sums.to(session.device))
    return {
        "kind": "evaluation",
        "step": step,
        "loss": loss / count,
        "perplexity": math.exp(min(loss / count, 700.0)),
        "token_accuracy": hits / count,
        "supervised_tokens": int(count),
    }
