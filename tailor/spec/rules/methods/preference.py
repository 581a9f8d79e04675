"""The rules that the methods that compare answers share."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.data import Data
from tailor.spec.rules.keys import Conflict, Finding, Keys


def conflicts(keys: Keys) -> Iterator[Conflict]:
    """Pairs of keys that do not go together, and why."""
    assert keys.method is not None
    length = keys("data.max_length") or Data.model_fields["max_length"].default
    for key in ("method.max_prompt_length", "method.max_completion_length"):
        limit = keys(key)
        if limit and not keys.is_wrong("data.max_length") and limit >= length:
            yield key, "data.max_length", f"{limit} tokens leave none of {length} for the rest"
    if keys("model.warm_start") is not None and keys.method.reference_source is not None:
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


def findings(keys: Keys) -> Iterator[Finding]:
    """Keys that need others, and what cannot be done with whole answers."""
    name = keys("method.name")
    if keys("data.on_long") == "chunk":
        yield "data.on_long", f"method {name} compares whole answers, which cannot be cut into chunks"
    if keys("data.on_long") == "retrieve":
        yield "data.on_long", f"method {name} keeps the end of a long prompt; write truncate"
    if keys("method.reference") == "adapter_off" and keys.absent("model.adapter"):
        yield "method.reference", "needs model.adapter: without one there is nothing to turn off"
