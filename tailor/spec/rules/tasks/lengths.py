"""Rules between the keys of tasks at given lengths."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules.keys import Finding, Keys

SHORTEST = 8
"""Tokens of the shortest length."""


def findings(keys: Keys, key: str) -> Iterator[Finding]:
    """What is wrong with the task at `key`."""
    lengths, depths = keys(f"{key}.lengths"), keys(f"{key}.depths")
    lengths = lengths if isinstance(lengths, list) else []
    depths = depths if isinstance(depths, list) else []
    for what, values in (("lengths", lengths), ("depths", depths)):
        for value in sorted({value for value in values if values.count(value) > 1}):
            yield f"{key}.{what}", f"names {value:g} twice"
    if short := [length for length in lengths if length < SHORTEST]:
        yield f"{key}.lengths", f"{short[0]} tokens are no text; give at least {SHORTEST}"
    if odd := [depth for depth in depths if not 0 <= depth <= 1]:
        yield f"{key}.depths", f"{odd[0]:g} is no share of a text; write a number from 0 to 1"
    stride = keys(f"{key}.stride")
    if stride and lengths and stride >= min(lengths):
        yield (
            f"{key}.stride",
            f"{stride} new tokens leave a window of {min(lengths)} no tokens before them",
        )
    needle = keys(f"{key}.needle")
    if isinstance(needle, str) and "{value}" not in needle:
        yield f"{key}.needle", "hides nothing: write {value} where the value stands"
