"""CSV and TSV to rows. A row that breaks the rules is named and ends alone: reading resumes at its second line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import IO, Any

from tailor.encode.records import RowError
from tailor.errors import DataError

MAX_ROW_CHARACTERS = 32 << 20


class _Lines:
    """Lines of a text with their numbers. Those since `mark` can be given again."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream
        self._again: list[str] = []
        self.taken: list[str] = []
        self.number = 0
        """Lines taken so far."""
        self._characters = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self._again:
            line = self._again.pop()
        else:
            line = self._stream.readline(MAX_ROW_CHARACTERS)
            if not line:
                raise StopIteration
        self.number += 1
        self.taken.append(line)
        self._characters += len(line)
        if self._characters >= MAX_ROW_CHARACTERS:
            raise _TooLong
        return line

    def mark(self) -> None:
        """A row begins here."""
        self.taken.clear()
        self._characters = 0

    def back(self) -> None:
        """Return to the second line of the row."""
        self.number -= len(self.taken) - 1
        self._again += reversed(self.taken[1:])
        while not self._again and self.taken and self.taken[0][-1:] not in "\r\n":
            # The rest of a line that is too long.
            rest = self._stream.readline(1 << 20)
            self.taken = [rest] if rest else []
        self.mark()


class _TooLong(Exception):
    pass


def read(stream: IO[bytes], label: str, delimiter: str) -> Iterator[dict[str, str] | RowError]:
    """The rows of a file as texts by column; an empty cell is a missing value.

    CSV is read strictly (RFC 4180): after a closing quote comes a comma or the end of the line. TSV has no quotes,
    so a quote is text, and no value holds a tab or a line break. DataError for a header that cannot be used.
    """
    csv.field_size_limit(MAX_ROW_CHARACTERS + 1)
    # Bytes that are no UTF-8 become surrogates, which name their row.
    with io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        lines = _Lines(text)
        rows = _rows(lines, delimiter)
        header = next(rows, None)
        if header is None:
            return
        columns = _header(header, label)
        for row in rows:
            if isinstance(row, RowError):
                yield row
            elif len(row) != len(columns):
                yield RowError("bad_csv", f"{_mismatch(row, columns, delimiter)} (line {lines.number})")
            elif not all(map(_is_utf8, row)):
                yield RowError("bad_encoding", f"not UTF-8 (line {lines.number})")
            else:
                yield {name: value for name, value in zip(columns, row, strict=True) if value}


def columns(stream: IO[bytes], label: str, delimiter: str) -> list[str]:
    """The columns of a file's header. DataError for a header that cannot be used."""
    with io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        header = next(_rows(_Lines(text), delimiter), None)
        return [] if header is None else _header(header, label)


def _rows(lines: _Lines, delimiter: str) -> Iterator[list[str] | RowError]:
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader: Any = None
    while True:
        lines.mark()
        first = lines.number + 1
        reader = reader or csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
        try:
            row = next(reader, None)
        except (csv.Error, _TooLong) as error:
            if isinstance(error, _TooLong):
                found = RowError("too_long", f"over {MAX_ROW_CHARACTERS:,} characters (line {first})")
            else:
                found = RowError("bad_csv", f"{_reason(error)} (line {first})")
            lines.back()
            reader = None
            yield found
            continue
        if row is None:
            return
        if row:
            yield row


def _reason(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return "a quote is opened and never closed"
    if "expected after" in str(error):
        return 'text after a closing quote; write a quote inside a value as ""'
    return str(error)


def _mismatch(row: Sequence[str], columns: Sequence[str], delimiter: str) -> str:
    told = f"{len(row)} values, and the header has {len(columns)} fields"
    if delimiter == "\t" and any(value.startswith('"') for value in row):
        told += "; in .tsv a quote is text, so write values with tabs or line breaks as .csv or .jsonl"
    return told


def _header(row: list[str] | RowError, label: str) -> list[str]:
    if isinstance(row, RowError):
        raise DataError(f"{label}: its header cannot be read: {row.detail}", hint="fix the first line")
    if not all(map(_is_utf8, row)):
        raise DataError(f"{label} is not UTF-8", hint="save the file as UTF-8")
    names: list[str] = []
    for at, name in enumerate(row):
        if not name.strip():
            # As pandas names it, for whose `to_csv` an index has no name.
            name = f"Unnamed: {at}"
            while name in row:
                name += ".1"
        elif name in names:
            raise DataError(f"{label}: its header names the column `{name}` twice", hint="rename one of them")
        names.append(name)
    return names


def _is_utf8(value: str) -> bool:
    return value.isascii() or not any("\udc80" <= char <= "\udcff" for char in value)
