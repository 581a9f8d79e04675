"""A data format: which fields a row has, and the record that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tailor.encode.fields import kind_of
from tailor.encode.records import Record, RowError
from tailor.spec.data import KINDS, Kind

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A format of rows. One file of this package per format or family of formats holds an instance."""

    name: str
    """Its name in a recipe, which is also its name in the registry."""

    rows: Kind
    """The kind of rows. A method names the kinds that it reads."""

    fields: Mapping[str, tuple[str, ...]]
    """Field -> the columns that may hold it, the usual one first. `data.train[].columns` may name another."""

    required: tuple[str, ...]
    """Fields that every row has."""

    convert: Callable[[Row], Record]
    """The fields that a row has -> its record. RowError for values that cannot be read."""

    form: Callable[[Row], bool] | None = None
    """Whether a row's fields have this format's form, where formats share columns. Default: required fields are texts."""

    is_chat: bool = False
    """Whether records are conversations, which the chat template renders."""

    numbered: str = ""
    """A field that may be spread over columns NAME_1, NAME_2, …: it is then a list."""

    def __post_init__(self) -> None:
        if self.rows not in KINDS:
            raise ValueError(
                f"rows of format {self.name} must be one of {', '.join(KINDS)}, not {self.rows!r}"
            )

    def pick(self, row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
        """The format's fields out of a row. RowError when a required one is missing."""
        picked = {}
        for field, names in self.fields.items():
            for name in (columns[field],) if field in columns else names:
                if row.get(name) is not None:
                    picked[field] = row[name]
                    break
            else:
                if field in self.required:
                    raise RowError("missing_key", f"missing key `{columns.get(field, names[0])}`")
        if self.numbered:
            self._pick_numbered(row, columns, picked)
        return picked

    def _pick_numbered(self, row: Row, columns: Mapping[str, str], picked: dict[str, Any]) -> None:
        head = f"{columns.get(self.numbered, self.numbered)}_"
        names = sorted(
            (name for name in row if _is_numbered(name, head)),
            key=lambda name: (int(name[len(head) :]), name),
        )
        several = [row[name] for name in names if row[name] is not None]
        if several:
            first = picked.get(self.numbered, [])
            picked[self.numbered] = [*(first if isinstance(first, list) else [first]), *several]

    def record(self, row: Any, columns: Mapping[str, str]) -> Record:
        """The record of a row. RowError when the row cannot be read."""
        if not isinstance(row, Mapping):
            raise RowError("wrong_type", f"a row must be an object, not {kind_of(row)}")
        return self.convert(self.pick(row, columns))

    def matches(self, picked: Row) -> bool:
        """Whether picked fields have the form of this format, by which `format: auto` recognizes it."""
        if self.form is not None:
            return self.form(picked)
        # A prompt or an answer that is a list of messages belongs to another format.
        return all(isinstance(picked[field], str) for field in self.required)

    def fits(self, row: Any, columns: Mapping[str, str]) -> bool:
        """Whether a row has the required fields in the form of this format."""
        try:
            return isinstance(row, Mapping) and self.matches(self.pick(row, columns))
        except Exception:  # a form looks at values of any kind
            return False


def _is_numbered(name: Any, head: str) -> bool:
    return isinstance(name, str) and name.startswith(head) and _is_number(name[len(head) :])


def _is_number(text: str) -> bool:
    """Whether a column's number is one of ASCII digits, few enough to be read as a number."""
    return text.isascii() and text.isdecimal() and len(text) < 10


def own_columns(*names: str) -> dict[str, tuple[str, ...]]:
    """Fields that stand in columns of their own names."""
    return {name: (name,) for name in names}


CONVERSATION = ("conversations", "conversation")
"""Columns that hold a conversation, in several formats."""
