"""The rules of methods that compare answers: dpo and kto."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.data import Data
from tailor.spec.method import ANSWERS, REFERENCE_FREE, SMOOTHED
from tailor.spec.rules.keys import Conflict, Finding, Keys


def conflicts(keys: Keys) -> Iterator[Conflict]:
    """Of the methods that compare answers."""
    if keys("method.name") not in ANSWERS:
        return
    length = keys("data.max_length") or Data.model_fields["max_length"].default
    for key in ("method.max_prompt_length", "method.max_completion_length"):
        limit = keys(key)
        if limit and not keys.is_wrong("data.max_length") and limit >= length:
            yield key, "data.max_length", f"{limit} tokens leave none of {length} for the rest"
    if keys("model.warm_start") is not None and keys("method.loss") not in REFERENCE_FREE:
        yield (
            "model.warm_start",
            "method.name",
            "the reference would be the base without what the other run trained, not the model that this run begins with",
        )
    if keys("method.reference") == "copy" and keys("model.adapter") is not None:
        yield (
            "method.reference",
            "model.adapter",
            "the base under the adapter is the reference already; a copy of it would only take memory",
        )


def idle(keys: Keys) -> Iterator[Finding]:
    """Keys of dpo that its loss does not use."""
    if keys("method.name") != "dpo" or keys.is_wrong("method.loss"):
        return
    loss = keys("method.loss") or "sigmoid"
    for key, used, whose in (
        ("method.label_smoothing", loss in SMOOTHED, ", ".join(SMOOTHED)),
        ("method.gamma", loss == "simpo", "simpo"),
        ("method.reference", loss not in REFERENCE_FREE, "losses with a reference model"),
    ):
        if keys(key) is not None and not used:
            yield key, f"has no effect on {loss}; it is for {whose}"
