"""Relevance judgments (qrels): BEIR's three columns, TREC's four, with or without a header, or rows with keys.

A location is `file:line` for text files and `file:row` for others, for error messages.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tailor.encode.readers import FileRange, Reader
from tailor.encode.records import RowError
from tailor.errors import DataError
from tailor.store import hint_of, opened

COLUMNS = ("query-id", "corpus-id", "score")
DELIMITERS = {"tsv": "\t", "csv": ",", "text": None}
"""Kind of a text file -> its delimiter. None: any white space, as in TREC's files."""
_TREC = 4
"""TREC's lines are `query 0 passage grade`. Its second column, the iteration, is not used."""
_HINT = (
    "write `query-id`, `corpus-id` and `score` in the first line, or no header and either three columns (query, passage, "
    "score) or TREC's four (query, 0, passage, score)"
)


@dataclass(frozen=True)
class Judgment:
    """How relevant a passage is to a query. location: of its row, for messages."""

    query: str
    passage: str
    grade: int
    location: str


def read_judgments(part: FileRange, max_rows: int | None = None) -> Iterator[Judgment]:
    """The judgments of a file, or of its first `max_rows` rows. A pair that is judged twice alike is given once.

    DataError for a row that is not a judgment, for two different grades of a pair, and for a file without rows.
    """
    grades: dict[tuple[str, str], Judgment] = {}
    count = 0
    for row in _lines(part) if part.kind in DELIMITERS else _rows(part):
        if count == max_rows:
            return
        count += 1
        earlier = grades.setdefault((row.query, row.passage), row)
        if earlier is row:
            yield row
        elif earlier.grade != row.grade:
            raise DataError(
                f"{row.location}: query {row.query!r} and passage {row.passage!r} have the score {row.grade}, but "
                f"{earlier.grade} in {earlier.location}",
                hint="remove one of the two rows",
            )
    if not count:
        raise DataError(f"{part.label}: no rows")


def _lines(part: FileRange) -> Iterator[Judgment]:
    header: list[str] | None = None
    first = True
    for number, values in split_lines(part):
        location = f"{part.label}:{number}"
        is_first, first = first, False
        if is_first and finite_number(values[-1]) is None:
            header = values
            if not set(COLUMNS) <= set(header):
                raise _unknown(location, header)
            continue
        if header is not None:
            if len(values) != len(header):
                raise DataError(
                    f"{location}: {len(values)} columns, and the header has {len(header)}",
                    hint="separate the columns by one tab" if part.kind == "tsv" else "check the line",
                )
            yield _judgment(dict(zip(header, values, strict=True)), location)
        elif len(values) in (len(COLUMNS), _TREC):
            query, *_, passage, score = values
            yield _judgment(dict(zip(COLUMNS, (query, passage, score), strict=True)), location)
        else:
            raise _unknown(location, values)


def split_lines(part: FileRange) -> Iterator[tuple[int, list[str]]]:
    """(line number, values) of the lines that are not blank."""
    delimiter = DELIMITERS[part.kind]
    try:
        with (
            opened(part.url, compression="infer") as stream,
            io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text,
        ):
            if delimiter is None:
                for number, line in enumerate(text, start=1):
                    if values := line.split():
                        yield number, values
                return
            quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
            reader = csv.reader(text, delimiter=delimiter, quoting=quoting)
            for values in reader:
                values = [value.strip() for value in values]
                if len(values) == 1:  # TREC's files are separated by spaces, whatever their suffix
                    values = values[0].split()
                if any(values):
                    yield reader.line_num, values
    except (OSError, EOFError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{part.label} cannot be read: {error}", hint=hint_of(part.url, error)) from None


def _rows(part: FileRange) -> Iterator[Judgment]:
    for number, row in Reader(part):
        location = f"{part.label}:{number}"
        if isinstance(row, RowError):
            raise DataError(f"{location}: {row.detail or row.reason}")
        if not isinstance(row, Mapping):
            raise DataError(f"{location}: a row must be an object")
        if not set(COLUMNS) <= set(row):
            raise _unknown(location, list(map(str, row)))
        yield _judgment(row, location)


def _judgment(row: Mapping[str, Any], location: str) -> Judgment:
    query, passage, score = (row[column] for column in COLUMNS)
    for column, value in zip(COLUMNS, (query, passage), strict=False):
        require_id(value, column, location)
    grade = finite_number(score)
    if grade is None or grade % 1:
        raise DataError(f"{location}: the score {score!r} is not an integer")
    return Judgment(str(query), str(passage), int(grade), location)


def require_id(value: Any, column: str, location: str) -> None:
    """DataError if a value of the column is no id, which is text or a whole number."""
    if not isinstance(value, (str, int)) or value == "":
        raise DataError(f"{location}: `{column}` must be an id, not {value!r}")


def finite_number(value: Any) -> float | int | None:
    """The number of a score such as 1, "1" or "1.0"; None if it is not a finite number."""
    try:
        return int(value) if not isinstance(value, float) else _finite(value)
    except (TypeError, ValueError):
        pass
    try:
        return _finite(float(value))
    except (TypeError, ValueError):
        return None


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def _unknown(location: str, values: Sequence[str]) -> DataError:
    return DataError(
        f"{location}: not a relevance judgment: its columns are {', '.join(values)}",
        hint=_HINT,
    )
