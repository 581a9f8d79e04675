"""The rules between the keys of method dpo."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.methods.dpo import REFERENCE_FREE, SMOOTHED
from tailor.spec.rules.keys import Finding, Keys
from tailor.spec.rules.methods import preference

conflicts = preference.conflicts


def findings(keys: Keys) -> Iterator[Finding]:
    """Keys that need others."""
    yield from preference.findings(keys)
    if keys("method.loss") == "robust" and not keys("method.label_smoothing"):
        yield "method.loss", "needs method.label_smoothing over 0: without it robust is sigmoid"


def unused(keys: Keys) -> Iterator[Finding]:
    """Keys that its loss does not use."""
    if keys.is_wrong("method.loss"):
        return
    loss = keys("method.loss") or "sigmoid"
    for key, used, whose in (
        ("method.label_smoothing", loss in SMOOTHED, ", ".join(SMOOTHED)),
        ("method.gamma", loss == "simpo", "simpo"),
        ("method.reference", loss not in REFERENCE_FREE, "losses with a reference model"),
    ):
        if keys(key) is not None and not used:
            yield key, f"has no effect on {loss}; it is for {whose}"
