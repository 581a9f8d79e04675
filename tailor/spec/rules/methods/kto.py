"""Rules of method kto."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules.keys import Finding, Keys
from tailor.spec.rules.methods import preference

conflicts = preference.conflicts


def findings(keys: Keys) -> Iterator[Finding]:
    """Keys that need other keys."""
    yield from preference.findings(keys)
    if keys("data.pack") is False and keys("train.batch_size") == 1:
        yield (
            "train.batch_size",
            "must be at least 2 for kto: its KL estimate pairs each prompt with the answer of another example",
        )
