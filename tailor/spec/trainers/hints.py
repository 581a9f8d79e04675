"""Hints for the keys and values of other trainers in a recipe, from their tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tailor.spec.trainers.common import HINTS, KEYS, SECTIONS, VALUES
from tailor.spec.trainers.facts import FACTS
from tailor.spec.trainers.registry import TRAINERS
from tailor.spec.trainers.rows import Row, Verdict


def _answers() -> Iterator[tuple[str, str, str]]:
    """(argument, key, hint) of every row: a key, or where that is not the answer a hint."""
    for trainer in TRAINERS:
        for name, row in trainer.rows.items():
            if "." in name or not name.isidentifier():
                continue
            key, hint = _answer(row)
            if key or hint:
                yield name, key, hint


def _answer(row: Row) -> tuple[str, str]:
    if row.outcome == "unneeded":
        return "", f"leave it out: {row.text}"
    if row.outcome in ("unsupported", "refused"):
        return "", f"it is not supported: {row.text}"
    keys, hints = [], []
    for key in row.keys:
        real, hint = FACTS[key[1:]] if key.startswith("=") else (key, "")
        keys.append(real)
        hints.append(hint)
    if any(hints):
        return "", next(hint for hint in hints if hint)
    if len(keys) == 1:
        return keys[0], ""
    return "", f"write {' or '.join(keys)}{f'; {row.text}' if row.text else ''}"


def _tables() -> tuple[dict[str, str], dict[str, str]]:
    aliases, hints = dict(KEYS), dict(HINTS)
    for name, key, hint in _answers():
        if name not in aliases and name not in hints:
            if key:
                aliases[name] = key
            else:
                hints[name] = hint
    return aliases, hints


ALIASES, MIGRATION_HINTS = _tables()
"""Key of another trainer -> key of a recipe (a name with dots: in that section only), or what to write."""


__all__ = ["ALIASES", "MIGRATION_HINTS", "SECTIONS", "value_hint"]


def value_hint(key: str, value: str) -> str | None:
    """What to write for another trainer's value of a key, or of a section."""
    text = value.strip().lower()
    if text in VALUES.get(key, {}):
        return VALUES[key][text]
    for trainer in TRAINERS:
        for row in trainer.rows.values():
            if not row.keys or row.keys[0] not in (key, f"{key}.{row.keys[0].rsplit('.', 1)[-1]}"):
                continue
            found = row.values.get(text)
            if found is not None and found != value and (hint := _value(row.keys[0], found, key)) is not None:
                return hint
    return None


def _value(target: str, found: Any, key: str) -> str | None:
    """target: the key of a value. key: the key or the section that has it in the file."""
    if isinstance(found, Verdict):
        first, _, _ = found.text.partition("; ")
        return (
            f"write {_written(target, found.value, key)}; {found.text}" if found.value is not None else first
        )
    if isinstance(found, dict) and all("." in str(one) for one in found):
        section = target.split(".")[0]
        inner = ", ".join(f"{one.split('.', 1)[1]}: {given}" for one, given in found.items())
        return f"write {section}: {{{inner}}}"
    return f"write {_written(target, found, key)}" if isinstance(found, str) else None


def _written(target: str, value: Any, key: str) -> str:
    return str(value) if target == key else f"{key}: {{{target.rsplit('.', 1)[-1]}: {value}}}"
