"""Rules between the keys of one method and the rest of the recipe: one file per method.

The method's section names the module.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from tailor.spec.rules.keys import Conflict, Finding, Keys


def conflicts(keys: Keys) -> Iterator[Conflict]:
    """Pairs of keys that cannot be used together."""
    yield from _of_method(keys, "conflicts")


def findings(keys: Keys) -> Iterator[Finding]:
    """Keys that need other keys, or are wrong by themselves."""
    yield from _of_method(keys, "findings")


def unused(keys: Keys) -> Iterator[Finding]:
    """Keys that would be ignored."""
    yield from _of_method(keys, "unused")


def _of_method(keys: Keys, function: str) -> Iterator[Any]:
    method = keys.method
    if method is not None and method.rules is not None:
        rules = getattr(import_module(method.rules), function, None)
        yield from rules(keys) if rules is not None else ()
