"""Rules of the task lm_eval."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules.keys import Finding, Keys


def findings(keys: Keys, key: str) -> Iterator[Finding]:
    """Problems of the task at `key`."""
    seen: list[object] = []
    names = keys(f"{key}.tasks")
    for at, name in enumerate(names if isinstance(names, list) else ()):
        if isinstance(name, str) and ("/" in name or name.endswith((".yaml", ".yml"))):
            yield (
                f"{key}.tasks.{at}",
                f"{name} is a path; write the task's name here and its folder in include",
            )
        elif name in seen:
            yield f"{key}.tasks.{at}", f"{name} is listed twice; remove one"
        seen.append(name)
