"""Rules of method pretrain."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules.keys import Conflict, Finding, Keys
from tailor.spec.rules.methods import next_token
from tailor.spec.rules.suite import NO_QUESTION


def conflicts(keys: Keys) -> Iterator[Conflict]:
    """Settings that plain texts do not support."""
    yield from next_token.conflicts(keys)
    if keys("evaluate.generation") is not None:
        yield (
            "evaluate.generation",
            "method.name",
            "plain text has no answers to compare with; remove evaluate.generation",
        )


def findings(keys: Keys) -> Iterator[Finding]:
    """Values that plain texts do not support."""
    if keys("data.on_long") == "retrieve":
        yield "data.on_long", NO_QUESTION


def unused(keys: Keys) -> Iterator[Finding]:
    """Keys that would be ignored."""
    assert keys.method is not None
    for key in ("data.template", "data.template_arguments", "data.reasoning"):
        if keys(key) is not None:
            yield key, "has no effect with pretrain: plain text has no turns"
    if keys.method.joins and not keys.is_wrong("method.documents"):
        why = "has no effect with documents: join, where no document is too long"
        for key in ("data.pack", "data.on_long", "data.chunk", "data.retrieve"):
            if keys(key) is not None:
                yield key, f"{why}; it is for documents: isolate"
