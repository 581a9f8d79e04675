"""The base of data formats: the fields of a row, and the function that makes a record of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

from tailor.encode.content import REASONING_KEYS, is_empty, kind_of, refuse_media
from tailor.encode.records import Record, RowError
from tailor.encode.turn_marks import MARKS, PART_MARKS
from tailor.spec.data import KINDS, Kind

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A data format. Each module of this package defines one instance, or a family of instances."""

    name: str
    """The name in recipes and in the registry."""

    rows: Kind
    """The kind of rows, such as `examples` or `pairs`. A method lists the kinds that it reads."""

    fields: Mapping[str, tuple[str, ...]]
    """Field -> the columns that may contain it, in order of preference. `data.train[].columns` can name another column."""

    required: tuple[str, ...]
    """The fields that every row must have."""

    convert: Callable[[Row], Record]
    """Fields of a row -> record. Raises RowError for invalid values."""

    form: Callable[[Row], bool] | None = None
    """Whether the values of a row's fields fit this format, as formats share columns. Default: required fields are strings."""

    is_chat: bool = False
    """Whether the records are conversations, which need a chat template."""

    numbered: str = ""
    """A field that may be spread over columns NAME_1, NAME_2, …, whose values then form a list."""

    keys: frozenset[str] | None = None
    """Keys of the objects in its fields that it uses: others are reported as unused. None: they are not looked at."""

    includes: tuple[str, ...] = ()
    """Formats whose rows this one reads too, as the same records. Of rows of both, `format: auto` finds this one."""

    unsupported: Mapping[str, str] = dataclass_field(default_factory=dict)
    """Column that would change what a row means, and that this format cannot use -> what can. Such a row is refused."""

    def __post_init__(self) -> None:
        if self.rows not in KINDS:
            raise ValueError(
                f"rows of format {self.name} must be one of {', '.join(KINDS)}, not {self.rows!r}"
            )

    def pick(self, row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
        """Select the format's fields from a row. RowError when a required field is missing."""
        picked = {}
        for field, names in self.fields.items():
            for name in (columns[field],) if field in columns else names:
                if row.get(name) is not None:
                    picked[field] = row[name]
                    break
            else:
                if field in self.required:
                    raise self._missing(row, (columns[field],) if field in columns else names)
        if self.numbered:
            self._pick_numbered(row, columns, picked)
        return picked

    def _missing(self, row: Row, names: tuple[str, ...]) -> RowError:
        empty = next((name for name in names if name in row), "")
        return RowError("missing_key", f"`{empty}` has no value" if empty else f"missing key `{names[0]}`")

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
        """Convert a row to a record. RowError when the row cannot be read."""
        if not isinstance(row, Mapping):
            raise RowError("wrong_type", f"a row must be an object, not {kind_of(row)}")
        refuse_media(row, "the row")
        if not self.unsupported.keys().isdisjoint(row):
            self._refuse_unsupported(row, columns)
        return self.convert(self.pick(row, columns))

    def _refuse_unsupported(self, row: Row, columns: Mapping[str, str]) -> None:
        for column, instead in self.unsupported.items():
            if column in row and column not in columns.values() and not is_empty(row[column]):
                detail = f"`{column}` changes the prompt, and format {self.name} does not use it; {instead}"
                raise RowError("unsupported_column", detail)

    def matches(self, picked: Row) -> bool:
        """Whether selected fields fit this format; `format: auto` uses it."""
        if self.form is not None:
            return self.form(picked)
        # A prompt or answer that is a list of messages belongs to another format.
        return all(isinstance(picked[field], str) for field in self.required)

    def fits(self, row: Any, columns: Mapping[str, str]) -> bool:
        """Whether a row has the required fields, and their values fit this format."""
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
    """Fields whose columns have the same names."""
    return {name: (name,) for name in names}


SYSTEM = {"system": ("system", "system_prompt", "system_message")}
"""The column of a system text, in all formats of conversations."""

TOOLS = {"tools": ("tools", "functions")}
"""The column of the tools, in all formats of conversations."""

MARK_KEYS = frozenset({*MARKS, *PART_MARKS, *REASONING_KEYS})
"""Keys of any turn that a format reads."""

MESSAGE_KEYS = MARK_KEYS | {"role", "content", "tool_calls", "tool_call_id", "function_call"}
"""Keys of an OpenAI message that a format reads. The template may read others."""

TURN_KEYS = MARK_KEYS | {"from", "value"}
"""Keys of a ShareGPT turn that a format reads."""

CONVERSATION = ("conversations", "conversation")
"""Columns that contain a conversation in several formats."""
