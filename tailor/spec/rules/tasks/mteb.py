"""Rules of the task mteb."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules.keys import Finding, Keys


def findings(keys: Keys, key: str) -> Iterator[Finding]:
    """Problems of the task at `key`."""
    names = keys(f"{key}.tasks")
    names = names if isinstance(names, list) else []
    for at, name in enumerate(names):
        if name in names[:at]:
            yield f"{key}.tasks.{at}", f"{name} is listed twice; remove one"


def unused(keys: Keys, key: str) -> Iterator[Finding]:
    """Keys of the task at `key` that have no effect."""
    names, own = keys(f"{key}.tasks"), keys(f"{key}.instructions")
    if isinstance(names, list) and isinstance(own, dict):
        for name in own:
            if name not in names:
                yield f"{key}.instructions", f"has {name}, which is not in tasks; remove it"
