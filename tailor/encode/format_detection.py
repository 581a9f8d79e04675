"""Detect the format of a source from its first rows, and explain why it cannot be detected."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from tailor.encode.formats import formats_of, get_format, recognize
from tailor.encode.guard import guarded
from tailor.encode.readers import FileRange, Reader
from tailor.encode.records import RowError
from tailor.errors import DataError
from tailor.spec.data import EXAMPLES, PAIRS, RATED, Source, is_read
from tailor.spec.methods.registry import METHODS
from tailor.spec.methods.union import Method

_PEEK = 20
_PREFERENCE = (("chosen", "rejected"), ("chosen_messages", "rejected_messages"))

Rows = list[tuple[str, Any]]
"""(name, row) pairs; a name is, for example, `rows.jsonl:3`."""


class UnknownFormatError(DataError):
    """No format that the method reads can be detected. The hint names keys of a recipe."""


def find_format(source: Source, context: str, files: list[FileRange], method: Method) -> tuple[str, bool]:
    """The format's name, and whether it was detected. DataError when columns or rows fit no format.

    context: the source's name in messages.
    """
    among = formats_of(method.reads)
    _check_kind(source, context, method, among)
    _check_fields(source, context, among)
    if source.format != "auto" and not source.columns:
        return source.format, False
    rows, unreadable = _first_rows(files)
    _check_columns(source, context, rows, among)
    if source.format != "auto":
        return source.format, False
    readable = [row for _, row in rows]
    _check_not_preference(source, context, readable, method)
    matching = recognize(readable, source.columns, among)
    if len(matching) == 1:
        return matching[0], True
    if matching:
        raise UnknownFormatError(
            f"{context}: format: auto is ambiguous: the rows fit {' and '.join(matching)}"
            + _first_deviating(rows, source.columns, among),
            hint=f"set the format, for example format: {matching[0]}",
        )
    needs = _missing_field(method)
    if needs and _reason(rows, source.columns, among):
        raise _undetected(source, context, files, rows, unreadable, among)
    # Methods that compare or rate answers first: their rows are examples too.
    for other in sorted(METHODS.names(), key=lambda name: EXAMPLES in METHODS.get(name).reads):
        others = [name for name in formats_of(METHODS.get(other).reads) if name not in among]
        if fitting := recognize(readable, source.columns, others):
            readers = [name for name in METHODS.names() if fitting[0] in formats_of(METHODS.get(name).reads)]
            named = other if EXAMPLES in METHODS.get(other).reads else " or ".join(readers)
            raise UnknownFormatError(
                f"{context}: the rows have the format {' or '.join(fitting)}, which method {method.name} does not read",
                hint="name the column of the texts with columns: {text: …}, or use method sft with train_on: everything"
                if not method.reads_conversations
                else (EXAMPLES in METHODS.get(other).reads and needs)
                or f"set method.name: {named}, or use another data source",
            )
    raise _undetected(source, context, files, rows, unreadable, among)


def _missing_field(method: Method) -> str:
    """What to do about rows of examples for a method that compares or rates answers; empty for other methods."""
    if RATED in method.reads:
        return "name the column of the label, as columns: {label: …}, or use another data source"
    if PAIRS in method.reads:
        return "name the columns of the answers, as columns: {chosen: …, rejected: …}, or use another data source"
    return ""


def _check_kind(source: Source, context: str, method: Method, among: Sequence[str]) -> None:
    """DataError when the method does not read the rows of the named format."""
    if source.format == "auto":
        return
    kind = get_format(source.format).rows
    if not is_read(kind, method.reads):
        raise DataError(
            f"{context}: format {source.format} has rows of the kind `{kind}`, but method {method.name} reads "
            + " and ".join(f"`{name}`" for name in method.reads),
            hint=f"set format to one of {', '.join(among)}, or use a method that reads `{kind}`",
        )


def _check_not_preference(source: Source, context: str, rows: list[Any], method: Method) -> None:
    """DataError for preference data in a method that would learn the rejected answers too."""
    named = set(source.columns.values())
    pairs = any(
        isinstance(row, Mapping) and any(set(columns) <= set(row) for columns in _PREFERENCE) for row in rows
    )
    if pairs and named.isdisjoint(chain.from_iterable(_PREFERENCE)) and PAIRS not in method.reads:
        raise UnknownFormatError(
            f"{context}: the rows are preference data (columns chosen and rejected), which method {method.name} does not read",
            hint="set method.name: dpo; to learn only the chosen answers, set format and columns",
        )
    if RATED in method.reads or not recognize(rows, source.columns, formats_of((RATED,))):
        return
    if fitting := recognize(rows, source.columns, formats_of(method.reads)):
        raise UnknownFormatError(
            f"{context}: the rows are answers with a label (as for KTO), which method {method.name} does not read",
            hint=f"set method.name: kto; to learn every answer, whatever its label, set format: {fitting[0]}",
        )


def _first_rows(files: list[FileRange]) -> tuple[Rows, tuple[str, RowError] | None]:
    """The first readable rows (up to `_PEEK`), and the first unreadable one."""
    rows: Rows = []
    unreadable: tuple[str, RowError] | None = None
    numbered = ((f"{part.label}:{number}", row) for part in files for number, row in Reader(_beginning(part)))
    for name, row in islice(numbered, 50 * _PEEK):
        if isinstance(row, RowError):
            unreadable = unreadable or (name, row)
        else:
            rows.append((name, row))
            if len(rows) == _PEEK:
                break
    return rows, unreadable


def _beginning(part: FileRange) -> FileRange:
    return replace(part, stop=_PEEK) if part.kind == "dataset" else part


def _fields(among: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(get_format(name).fields for name in among)))


def _check_fields(source: Source, context: str, among: Sequence[str]) -> None:
    """DataError when a key of `columns` is not a field of the format."""
    known = _fields(among) if source.format == "auto" else tuple(get_format(source.format).fields)
    unknown = sorted(set(source.columns) - set(known))
    if not unknown:
        return
    named = ", ".join(f"`{name}`" for name in unknown)
    owner = "any format" if source.format == "auto" else f"the format {source.format}"
    hint = f"the fields are {', '.join(known)}"
    if all(source.columns[name] in known for name in unknown):
        swapped = ", ".join(f"{column}: {field}" for field, column in source.columns.items())
        hint = f"write field: column, that is columns: {{{swapped}}}"
    is_not = "is not a field" if len(unknown) == 1 else "are not fields"
    raise DataError(f"{context}: columns: {named} {is_not} of {owner}", hint=hint)


def _check_columns(source: Source, context: str, rows: Rows, among: Sequence[str]) -> None:
    """DataError when no row has a column that `columns` names for a required field."""
    required = {field for name in among for field in get_format(name).required}
    if source.format != "auto":
        required = set(get_format(source.format).required)
    keys = [
        str(key)
        for key in dict.fromkeys(chain.from_iterable(row for _, row in rows if isinstance(row, Mapping)))
    ]
    for field, column in source.columns.items():
        if field not in required or column in keys or not keys:
            continue
        close = difflib.get_close_matches(column, keys, n=1)
        if field in keys and column in _fields(among):
            hint = f"write field: column, that is columns: {{{column}: {field}}}"
        elif close:
            hint = f"did you mean {close[0]}?"
        else:
            hint = "name one of these columns"
        raise DataError(
            f"{context}: columns: the rows have no column `{column}` for the field {field}; they have {', '.join(keys)}",
            hint=hint,
        )


def _first_deviating(rows: Rows, columns: Mapping[str, str], among: Sequence[str]) -> str:
    """The first row whose format differs from the rows before it, as the end of a message."""
    before: list[str] = []
    for name, row in rows:
        fits = recognize([row], columns, among)
        if before and fits and fits != before:
            return f"; {name} fits {' and '.join(fits)}, the rows before it fit {' and '.join(before)}"
        before = before or fits
    return ""


def _undetected(
    source: Source,
    context: str,
    files: list[FileRange],
    rows: Rows,
    unreadable: tuple[str, RowError] | None,
    among: Sequence[str],
) -> DataError:
    """The error for rows that fit no format, with the reason as far as it is known."""
    keys = next((list(map(str, row)) for _, row in rows if isinstance(row, Mapping)), [])
    problem = f"the rows have the keys {', '.join(keys)}" if keys else "none of the first rows is readable"
    hint = "set format to one of " + ", ".join(among) + ", and columns to the names of its fields in the rows"
    if files[0].kind == "csv" and len(keys) == 1:
        for separator, fix in (("\t", "rename the file to .tsv"), (";", "save the file with commas")):
            if separator in keys[0]:
                problem = f"the columns are separated by {separator!r}, but a .csv file needs ','"
                hint = fix
    elif not rows and unreadable:
        problem += f"; {unreadable[0]} {unreadable[1].detail}"
        hint = "fix these rows" + (
            ", or save the file as UTF-8" if "utf" in unreadable[1].detail.lower() else ""
        )
    elif reason := _reason(rows, source.columns, among):
        problem += f"; {reason}"
    return UnknownFormatError(f"{context}: format: auto finds no format that fits: {problem}", hint=hint)


def _reason(rows: Rows, columns: Mapping[str, str], among: Sequence[str]) -> str:
    """Why the first row with the required fields of a format cannot be read."""
    for name, row in rows:
        if not isinstance(row, Mapping):
            return f"{name} is not an object"
        for fmt in (get_format(name) for name in among):
            if not set(columns) <= set(fmt.fields):
                continue
            try:
                fmt.pick(row, columns)
            except Exception:
                continue
            try:
                guarded(fmt, row, columns)
            except RowError as error:
                return f"{name} read as {fmt.name}: {error.detail}"
    return ""
