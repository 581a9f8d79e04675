"""What becomes of one argument of another trainer: a row of its table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["taken", "unneeded", "unsupported", "refused"]
OFF: tuple[Any, ...] = (None, False, "", "none", "no", "off", "disabled", "null", 0, 0.0, [], {})
"""Values with which an argument is turned off."""


@dataclass(frozen=True)
class Row:
    """One argument: which keys of a recipe it sets, or why there are none."""

    name: str
    outcome: Outcome
    keys: tuple[str, ...] = ()
    """Recipe keys, for `taken`. A name with `=` in front is a fact from which `tailor.spec.moving.combine` makes keys."""
    text: str = ""
    """A remark, why it is not needed, or what is different without it."""
    values: Mapping[Any, Any] = field(default_factory=dict)
    """Value there (lower case) -> value in the recipe, or a mapping of keys, or a `Verdict`."""
    convert: str = ""
    """Function of `tailor.spec.moving.conversions` for values that no list of pairs can express."""
    neutral: tuple[Any, ...] = OFF
    """Values with which an argument without a key changes nothing."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of one value, where it differs from the argument's row."""

    outcome: Outcome
    text: str
    value: Any = None
    """The nearest value, for an unsupported one."""


def unlike(value: Any, text: str) -> Verdict:
    """The nearest value, and what differs."""
    return Verdict("unsupported", text, value)


def no(text: str) -> Verdict:
    return Verdict("unsupported", text)


def refuse(text: str) -> Verdict:
    return Verdict("refused", text)


def skip(text: str) -> Verdict:
    return Verdict("unneeded", text)


def taken(
    names: str, keys: str, text: str = "", *, values: Mapping[Any, Any] | None = None, convert: str = ""
) -> list[Row]:
    """Arguments that set keys of a recipe. names, keys: separated by spaces."""
    return [Row(name, "taken", tuple(keys.split()), text, values or {}, convert) for name in names.split()]


def unneeded(names: str, why: str) -> list[Row]:
    return [Row(name, "unneeded", text=why) for name in names.split()]


def unsupported(names: str, change: str, *, neutral: tuple[Any, ...] = ()) -> list[Row]:
    """Arguments without a counterpart. change: what is different in the recipe."""
    return [Row(name, "unsupported", text=change, neutral=(*OFF, *neutral)) for name in names.split()]


def refused(names: str, why: str, *, neutral: tuple[Any, ...] = ()) -> list[Row]:
    """Arguments that no recipe can express: the file is not imported, unless they are off."""
    return [Row(name, "refused", text=why, neutral=(*OFF, *neutral)) for name in names.split()]


@dataclass(frozen=True)
class Trainer:
    """Another trainer, and its table."""

    name: str
    """The value of `--from`."""
    title: str
    reads: str
    """The files that `tailor import` reads of it; empty if it has none."""
    rows: Mapping[str, Row]
    marks: Mapping[str, int] = field(default_factory=dict)
    """Arguments by which its files are recognized, and how sure they make. `*` at the end matches any ending."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Its defaults for arguments that a file leaves out, where a recipe has others."""
    command_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of its command line, where they differ from those of its files."""
    adapter: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `model.adapter` that its code sets, without an argument for them."""
    remark: str = ""
    """Text above its table in the documentation."""


def table(*groups: Iterable[Row]) -> dict[str, Row]:
    """Rows by argument. A later row replaces an earlier one."""
    return {row.name: row for group in groups for row in group}
