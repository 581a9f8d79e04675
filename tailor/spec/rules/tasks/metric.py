"""Rules of the task metric."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules.keys import Finding, Keys


def findings(keys: Keys, key: str) -> Iterator[Finding]:
    """Problems of the task at `key`."""
    function = keys(f"{key}.function")
    if not isinstance(function, str):
        return
    file, _, name = function.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        yield f"{key}.function", f"{function} is not FILE.py:FUNCTION, such as metric.py:score"
