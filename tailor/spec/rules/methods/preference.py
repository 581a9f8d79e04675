"""Rules that all methods with preference data share."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.data import Data
from tailor.spec.rules.keys import Conflict, Finding, Keys


def conflicts(keys: Keys) -> Iterator[Conflict]:
    """Pairs of keys that cannot be used together."""
    assert keys.method is not None
    length = keys("data.max_length") or Data.model_fields["max_length"].default
    for key in ("method.max_prompt_length", "method.max_completion_length"):
        limit = keys(key)
        if limit and not keys.is_wrong("data.max_length") and limit >= length:
            yield (
                key,
                "data.max_length",
                f"{limit} of {length} tokens leave no room for the rest of the example; lower {key}",
            )
    if keys("model.warm_start") is not None and keys.method.reference_source is not None:
        yield (
            "model.warm_start",
            "method.name",
            "the reference would be the base model without the trained weights, not the model that this run starts from; merge that adapter into the base and set model.path to the result",
        )
    if keys("method.reference") == "copy" and keys("model.adapter") is not None:
        yield (
            "method.reference",
            "model.adapter",
            "with an adapter, the base model is the reference already, and a copy only needs memory; use adapter_off",
        )


def findings(keys: Keys) -> Iterator[Finding]:
    """Keys that need other keys, and values of `data.on_long` that are not possible."""
    name = keys("method.name")
    if keys("data.on_long") == "chunk":
        yield (
            "data.on_long",
            f"method {name} compares whole answers, which cannot be split into chunks; use drop or truncate",
        )
    if keys("data.on_long") == "retrieve":
        yield (
            "data.on_long",
            f"method {name} does not support retrieve; use truncate, which keeps the end of a long prompt",
        )
    if keys("method.reference") == "adapter_off" and keys.absent("model.adapter"):
        yield (
            "method.reference",
            "needs model.adapter: without an adapter there is nothing to turn off; use copy",
        )
