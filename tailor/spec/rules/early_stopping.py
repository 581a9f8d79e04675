"""Rules of `train.early_stopping`: evaluations during training, and a metric that they have."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules.keys import Finding, Keys
from tailor.spec.tasks.retrieval import Retrieval

KEY = "train.early_stopping"


def findings(keys: Keys) -> Iterator[Finding]:
    """Early stopping without an evaluation that has its metric."""
    if keys(KEY) is None:
        return
    if keys.absent("evaluate.every"):
        yield KEY, "needs evaluate.every: without it only the last step is evaluated"
    metric, method = keys(f"{KEY}.metric") or "loss", keys.method
    searches = keys("evaluate.retrieval") is not None
    if metric in Retrieval.figures:
        if not searches and not keys.is_wrong("evaluate.retrieval"):
            yield f"{KEY}.metric", f"{metric} needs evaluate.retrieval"
        return
    if keys.absent("data.evaluation") and keys.absent("data.holdout"):
        yield KEY, f"the metric {metric} needs evaluation data: set data.holdout or data.evaluation"
    if method is None or not method.metrics or not isinstance(metric, str):
        return  # the first evaluation shows which metrics a method of another package has
    known = ("loss", *method.metrics, *(Retrieval.figures if searches else ()))
    if metric not in known:
        yield f"{KEY}.metric", f"{metric} is no metric of method {method.name}; use one of {', '.join(known)}"
