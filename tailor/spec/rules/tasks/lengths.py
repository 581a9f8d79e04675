"""Rules of tasks at given context lengths."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules.keys import Finding, Keys
from tailor.spec.tasks.lengths import FILLER

MIN_LENGTH = 8
"""Smallest length, in tokens."""


def findings(keys: Keys, key: str) -> Iterator[Finding]:
    """Problems of the task at `key`."""
    lengths, depths = keys(f"{key}.lengths"), keys(f"{key}.depths")
    lengths = lengths if isinstance(lengths, list) else []
    depths = depths if isinstance(depths, list) else []
    for what, values in (("lengths", lengths), ("depths", depths)):
        for value in sorted({value for value in values if values.count(value) > 1}):
            yield f"{key}.{what}", f"has {value:g} twice; remove one"
    if short := [length for length in lengths if length < MIN_LENGTH]:
        yield f"{key}.lengths", f"{short[0]} tokens are too few; write at least {MIN_LENGTH}"
    if odd := [depth for depth in depths if not 0 <= depth <= 1]:
        yield f"{key}.depths", f"{odd[0]:g} is not a share of a text; write a number from 0 to 1"
    stride = keys(f"{key}.stride")
    if stride and lengths and stride >= min(lengths):
        yield (
            f"{key}.stride",
            f"{stride} new tokens leave no context in a window of {min(lengths)}; lower it",
        )
    used = keys(f"{key}.tokens_per_text")
    if used and lengths and used < max(lengths):
        yield (
            f"{key}.tokens_per_text",
            f"{used} tokens of each text are fewer than the largest of lengths, {max(lengths)}; raise it",
        )
    needle, name = keys(f"{key}.needle"), keys(f"{key}.name")
    if isinstance(needle, str) and "{value}" not in needle:
        yield f"{key}.needle", "has no hidden value; write {value} where it should be"
    yield from _placeholders(keys, key, str(name))
    yield from _too_many_values(keys, key)


def unused(keys: Keys, key: str) -> Iterator[Finding]:
    """A filler beside texts of one's own."""
    if keys(f"{key}.filler") not in (None, FILLER) and keys(f"{key}.data") is not None:
        yield f"{key}.filler", f"has no effect with {key}.data, which is the haystack"


def _placeholders(keys: Keys, key: str, name: str) -> Iterator[Finding]:
    needle, question = keys(f"{key}.needle"), keys(f"{key}.question")
    if name.startswith("needle_multi"):
        if isinstance(needle, str) and "{key}" not in needle:
            yield f"{key}.needle", "does not say whose value it is; write {key} where the key should be"
        if isinstance(question, str) and "{keys}" not in question:
            yield f"{key}.question", "asks for no key; write {keys} where the keys should be"
    if name == "variable_tracking" and isinstance(question, str) and "{value}" not in question:
        yield f"{key}.question", "asks for no value; write {value} where it should be"


def _too_many_values(keys: Keys, key: str) -> Iterator[Finding]:
    """More different values than numbers with `digits` digits."""
    digits = keys(f"{key}.digits")
    for name in ("keys", "values", "queries", "chains"):
        count = keys(f"{key}.{name}")
        if isinstance(count, int) and isinstance(digits, int) and count > 9 * 10 ** (max(digits, 1) - 1):
            yield (
                f"{key}.digits",
                f"{count} different values do not exist with {digits} digits; raise it, or lower {name}",
            )
