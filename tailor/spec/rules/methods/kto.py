"""The rules between the keys of method kto."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules.keys import Finding, Keys
from tailor.spec.rules.methods import preference

conflicts = preference.conflicts


def findings(keys: Keys) -> Iterator[Finding]:
    """Keys that need others."""
    yield from preference.findings(keys)
    if keys("data.pack") is False and keys("train.batch_size") == 1:
        yield (
            "train.batch_size",
            "method kto compares each prompt with another example's answer: a batch needs two examples",
        )
