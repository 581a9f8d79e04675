"""Which format a source's rows have, from its first rows, and why it is unclear."""

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
from tailor.spec.data import PAIRS, RATED, Source, is_read
from tailor.spec.methods.registry import METHODS
from tailor.spec.methods.union import Method

_PEEK = 20
_PREFERENCE = ("chosen", "rejected")

Rows = list[tuple[str, Any]]
"""Rows with their names, such as `rows.jsonl:3`."""


def find_format(source: Source, where: str, files: list[FileRange], method: Method) -> tuple[str, bool]:
    """The format's name, and whether it was recognized. DataError for columns or rows that fit no format."""
    among = formats_of(method.reads)
    _check_kind(source, where, method, among)
    _check_fields(source, where, among)
    if source.format != "auto" and not source.columns:
        return source.format, False
    rows, refused = _first_rows(files)
    _check_columns(source, where, rows, among)
    if source.format != "auto":
        return source.format, False
    readable = [row for _, row in rows]
    _refuse_answers(source, where, readable, method)
    found = recognize(readable, source.columns, among)
    if len(found) == 1:
        return found[0], True
    if found:
        raise DataError(
            f"{where}: format auto: the rows may be {' or '.join(found)}{_stray(rows, source.columns, among)}",
            hint=f"say which: format: {found[0]}, for example",
        )
    for other in METHODS.names():
        others = [name for name in formats_of(METHODS.get(other).reads) if name not in among]
        if fitting := recognize(readable, source.columns, others):
            raise DataError(
                f"{where}: the rows look like {' or '.join(fitting)}, which method {method.name} does not read",
                hint="name the column of the texts, as columns: {text: …}, or use method sft with train_on: everything"
                if not method.reads_conversations
                else f"set method.name: {other}, or choose other rows",
            )
    raise _riddle(source, where, files, rows, refused, among)


def _check_kind(source: Source, where: str, method: Method, among: Sequence[str]) -> None:
    """The named format gives rows of a kind that the method reads."""
    if source.format == "auto":
        return
    kind = get_format(source.format).rows
    if not is_read(kind, method.reads):
        raise DataError(
            f"{where}: format {source.format} gives rows of the kind `{kind}`, and method {method.name} reads "
            + " and ".join(f"`{one}`" for one in method.reads),
            hint=f"set format to one of {', '.join(among)}, or choose a method that reads `{kind}`",
        )


def _refuse_answers(source: Source, where: str, rows: list[Any], method: Method) -> None:
    """Rows with answers to avoid would pass for examples to learn, if nothing but their columns were looked at."""
    named = set(source.columns.values())
    pairs = any(isinstance(row, Mapping) and set(_PREFERENCE) <= set(row) for row in rows)
    if pairs and not set(_PREFERENCE) & named and PAIRS not in method.reads:
        raise DataError(
            f"{where}: the rows have chosen and rejected: preference data, which method {method.name} does not read",
            hint="set method.name: dpo; to learn the chosen texts alone, say so with format and columns",
        )
    if RATED in method.reads or not recognize(rows, source.columns, formats_of((RATED,))):
        return
    if fitting := recognize(rows, source.columns, formats_of(method.reads)):
        raise DataError(
            f"{where}: the rows have answers and a label: rated answers, which method {method.name} does not read",
            hint=f"set method.name: kto; to learn every answer, set format: {fitting[0]}",
        )


def _first_rows(files: list[FileRange]) -> tuple[Rows, tuple[str, RowError] | None]:
    """Some readable rows from the start, and the first unreadable one."""
    rows: Rows = []
    refused: tuple[str, RowError] | None = None
    numbered = ((f"{part.label}:{number}", row) for part in files for number, row in Reader(_beginning(part)))
    for name, row in islice(numbered, 50 * _PEEK):
        if isinstance(row, RowError):
            refused = refused or (name, row)
        else:
            rows.append((name, row))
            if len(rows) == _PEEK:
                break
    return rows, refused


def _beginning(part: FileRange) -> FileRange:
    return replace(part, stop=_PEEK) if part.kind == "dataset" else part


def _fields(among: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(get_format(name).fields for name in among)))


def _check_fields(source: Source, where: str, among: Sequence[str]) -> None:
    """The keys of `columns` are fields of the format."""
    known = _fields(among) if source.format == "auto" else tuple(get_format(source.format).fields)
    unknown = sorted(set(source.columns) - set(known))
    if not unknown:
        return
    named = ", ".join(f"`{name}`" for name in unknown)
    of = "any format" if source.format == "auto" else f"the format {source.format}"
    hint = f"its fields: {', '.join(known)}"
    if all(source.columns[name] in known for name in unknown):
        turned = ", ".join(f"{column}: {field}" for field, column in source.columns.items())
        hint = f"it is written field: column, so {{{turned}}}"
    raise DataError(f"{where}: columns names {named}, no field of {of}", hint=hint)


def _check_columns(source: Source, where: str, rows: Rows, among: Sequence[str]) -> None:
    """Some row has each column that stands for a required field."""
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
            hint = f"it is written field: column, so {{{column}: {field}}}"
        elif close:
            hint = f"did you mean {close[0]}?"
        else:
            hint = "name one of these columns"
        raise DataError(
            f"{where}: columns: the rows have no column `{column}` for {field}; they have {', '.join(keys)}",
            hint=hint,
        )


def _stray(rows: Rows, columns: Mapping[str, str], among: Sequence[str]) -> str:
    """The first row that looks like another format than the rows before it."""
    before: list[str] = []
    for name, row in rows:
        fits = recognize([row], columns, among)
        if before and fits and fits != before:
            return f"; {name} looks like {' or '.join(fits)}, those before it like {' or '.join(before)}"
        before = before or fits
    return ""


def _riddle(
    source: Source,
    where: str,
    files: list[FileRange],
    rows: Rows,
    refused: tuple[str, RowError] | None,
    among: Sequence[str],
) -> DataError:
    """What stands in the way of recognizing a format."""
    keys = next((list(map(str, row)) for _, row in rows if isinstance(row, Mapping)), [])
    seen = f"the rows have the keys {', '.join(keys)}" if keys else "no readable row among the first ones"
    hint = "set format to one of " + ", ".join(among) + ", and columns to say where its fields stand"
    if files[0].kind == "csv" and len(keys) == 1:
        for mark, cure in (("\t", "name the file .tsv"), (";", "write it with commas")):
            if mark in keys[0]:
                seen = f"its columns are separated by {mark!r}, and a .csv file's by ','"
                hint = cure
    elif not rows and refused:
        seen += f"; {refused[0]} {refused[1].detail}"
        hint = "fix these rows" + (
            ", or save the file as UTF-8" if "utf" in refused[1].detail.lower() else ""
        )
    elif reason := _reason(rows, source.columns, among):
        seen += f"; {reason}"
    return DataError(f"{where}: format auto recognizes none: {seen}", hint=hint)


def _reason(rows: Rows, columns: Mapping[str, str], among: Sequence[str]) -> str:
    """Why the first row that has a format's required fields cannot be read."""
    for name, row in rows:
        if not isinstance(row, Mapping):
            return f"{name} is no object"
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
                return f"{name} as {fmt.name}: {error.detail}"
    return ""
