"""Loss, perplexity and token accuracy on the evaluation split, weighted by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from tailor.batches import micro_batches, pack
from tailor.models.documents import collate
from tailor.rows import Row, join
from tailor.spec.method import joins
from tailor.train.session import Session


@torch.no_grad()
def evaluate(session: Session, step: int) -> dict[str, Any] | None:
    """One record over the whole evaluation split; every rank takes a share and gets the same numbers.

    None, on every rank, when one of them was asked to stop meanwhile.
    """
    plan, host, model = session.plan, session.host, session.model
    split = session.tokens.split("evaluation")
    examples = torch.arange(len(split)).numpy()
    rows: Sequence[Row]
    if joins(plan.method):
        rows = join(examples, split.lengths, plan.max_length)
    else:
        rows = pack(examples, split.lengths, plan.max_length) if plan.pack else [(int(i),) for i in examples]
    sums = torch.zeros(4, dtype=torch.float64)  # loss, hits, targets, workers that were asked to stop
    was_training = model.training
    model.eval()
    for number, part in enumerate(micro_batches(list(rows), plan.micro_batch_size)):
        if number % host.world != host.rank:
            continue
        if host.stopping():
            sums[3] = 1
            break
        batch = collate(split, part, model.layout).to(session.device)
        with session.autocast():
            loss, hits = session.method.evaluate(model, batch)
        sums[:3] += torch.tensor([loss.item(), hits.item(), len(batch.targets)], dtype=torch.float64)
    model.train(was_training)
    if host.world > 1:
        sums = sums.to(session.device)
        dist.all_reduce(sums)
    loss, hits, count, stopping = (float(value) for value in sums)
    if stopping:
        return None
    return {
        "kind": "evaluation",
        "step": step,
        "loss": loss / count,
        "perplexity": math.exp(min(loss / count, 700.0)),
        "token_accuracy": hits / count,
        "supervised_tokens": int(count),
    }
