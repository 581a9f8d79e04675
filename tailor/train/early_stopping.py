"""`train.early_stopping`: training ends when the evaluations no longer improve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from tailor.errors import TrainingError
from tailor.spec.train import EarlyStopping
from tailor.train.checkpoint import State
from tailor.train.session import Session


def watch(session: Session, state: State, metrics: Mapping[str, Any]) -> None:
    """Count an evaluation in `state`, and end training if it was one too many without an improvement. A collective call.

    metrics: of the evaluation, by name, on rank 0. TrainingError if the metric is not among them.
    """
    spec = session.plan.early_stopping
    if spec is None:
        return
    values = [metrics.get(spec.metric)]
    if session.host.world > 1:  # only rank 0 has the metrics of retrieval
        dist.broadcast_object_list(values, src=0, device=session.host.device)
    if not isinstance(values[0], int | float):
        raise TrainingError(
            f"train.early_stopping.metric: this evaluation has no metric {spec.metric}",
            hint="set it to one of the metrics of the evaluations in metrics.jsonl, such as loss",
        )
    count(spec, state, values[0])
    if state.unimproved >= spec.patience and state.step < session.plan.steps:
        state.stopped_early = True
        best = "" if state.watched_best is None else f" (best: {state.watched_best:.4g})"
        session.say(
            f"stopping early at step {state.step} of {session.plan.steps}: {spec.metric} has not improved in "
            f"{state.unimproved} evaluations{best}"
        )


def count(spec: EarlyStopping, state: State, value: float) -> None:
    """Update the best value and the number of evaluations since it. A value that is not finite is no improvement."""
    best = state.watched_best
    gain = math.inf if best is None else best - value if lower_is_better(spec.metric) else value - best
    if math.isfinite(value) and gain > spec.min_delta:
        state.watched_best, state.unimproved = value, 0
    else:
        state.unimproved += 1


def lower_is_better(metric: str) -> bool:
    return metric.endswith("loss") or metric == "perplexity"
