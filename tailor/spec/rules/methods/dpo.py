"""Rules of method dpo."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.methods.dpo import REFERENCE_FREE, SMOOTHED
from tailor.spec.rules.keys import Finding, Keys
from tailor.spec.rules.methods import preference

conflicts = preference.conflicts


def findings(keys: Keys) -> Iterator[Finding]:
    """Keys that need other keys."""
    yield from preference.findings(keys)
    if keys("method.loss") == "robust" and not keys("method.label_smoothing"):
        yield "method.loss", "needs method.label_smoothing above 0: without it, robust equals sigmoid"


def unused(keys: Keys) -> Iterator[Finding]:
    """Keys that the chosen loss does not use."""
    if keys.is_wrong("method.loss"):
        return
    loss = keys("method.loss") or "sigmoid"
    for key, used, users in (
        ("method.label_smoothing", loss in SMOOTHED, ", ".join(SMOOTHED)),
        ("method.gamma", loss == "simpo", "simpo"),
        ("method.reference", loss not in REFERENCE_FREE, "losses with a reference model"),
    ):
        if keys(key) is not None and not used:
            yield key, f"has no effect with loss: {loss}; it is for {users}"
