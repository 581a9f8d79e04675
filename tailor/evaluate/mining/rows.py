"""Rows of queries with their passages: read from any format of such rows, and written in one that trains as it is.

A written row has `query`, `pos` and `neg`, and all columns of the row that its format does not read. Texts are plain (the
format `flagembedding`), or [instruction, text] pairs (the format `gritlm`) in all rows if any text has an instruction.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from typing import Any

from tailor.encode.counted_rows import CountedRows
from tailor.encode.formats import get_format
from tailor.encode.formats.base import Format
from tailor.encode.guard import guarded
from tailor.encode.readers import Reader
from tailor.encode.records import Instructed, Relevance, RowError, require_unicode
from tailor.encode.sources import resolve_queries
from tailor.errors import DataError

WRITTEN = ("query", "pos", "neg", "pos_scores", "neg_scores", "teacher")


@dataclass(frozen=True)
class QueryRow:
    """A row. others: its columns that its format does not read, as JSON values."""

    record: Relevance
    others: Mapping[str, Any]


@dataclass
class QueryRows:
    """The readable rows of a source, in order, and those that were left out."""

    rows: list[QueryRow] = field(default_factory=list)
    unreadable: CountedRows = field(default_factory=CountedRows)
    contents: tuple[tuple[str, str], ...] = ()
    """(label, version or hash) of each file."""

    @property
    def records(self) -> list[Relevance]:
        return [row.record for row in self.rows]


def read_query_rows(path: str) -> QueryRows:
    """Read the rows of a source. A row that cannot be read is left out and counted.

    DataError when the source has no such rows, or none that can be read.
    """
    found = resolve_queries(path, "rows")
    fmt = get_format(found.format)
    read = QueryRows(contents=found.contents)
    for part in found.files:
        for number, row in Reader(part):
            try:
                read.rows.append(_query_row(fmt, row))
            except RowError as error:
                read.unreadable.add(part.label, number, error.detail or error.reason)
    if not read.rows:
        raise DataError(f"{found.context}: no row can be read{first_of(read.unreadable)}")
    return read


def first_of(counted: CountedRows) -> str:
    """`, such as FILE:ROW: DETAIL` for the first of the rows; empty without one."""
    if not counted.first:
        return ""
    label, number, detail = counted.first[0]
    return f", such as {label}:{number}: {detail}"


def _query_row(fmt: Format, row: Any) -> QueryRow:
    record, _ = guarded(fmt, row, {})
    assert isinstance(record, Relevance)
    for instruction, text in (record.query, *record.positives, *record.negatives):
        require_unicode(f"{instruction or ''}{text}")
    own = {name for names in fmt.fields.values() for name in names}
    others = {
        name: plain(value) for name, value in row.items() if name not in own and not _numbered(fmt, name)
    }
    if overwritten := [name for name in WRITTEN if others.get(name) is not None]:
        raise RowError("unsupported_column", f"its column `{overwritten[0]}` would be overwritten; rename it")
    return QueryRow(record, others)


def _numbered(fmt: Format, name: Any) -> bool:
    """Whether a column is one of NAME_1, NAME_2, … of a format that reads them."""
    head = f"{fmt.numbered}_"
    return bool(fmt.numbered) and str(name).startswith(head) and str(name)[len(head) :].isdecimal()


def plain(value: Any) -> Any:
    """A value as JSON has it: times as ISO 8601 texts, NaN as null. RowError for other values, such as bytes."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    raise RowError("bad_value", f"a column has a value of type {type(value).__name__}, which JSON lacks")


def written(
    rows: Sequence[QueryRow], records: Iterable[Relevance], teacher: str | None = None
) -> Iterator[bytes]:
    """The lines of a JSONL file: the rows, in which each record replaces the row's own.

    teacher: name of the model whose scores the records have.
    """
    replaced = list(records)
    texts = (text for record in replaced for text in (record.query, *record.positives, *record.negatives))
    paired = any(instruction for instruction, _ in texts)
    for row, record in zip(rows, replaced, strict=True):
        values: dict[str, Any] = {
            "query": _value(record.query, paired),
            "pos": [_value(text, paired) for text in record.positives],
            "neg": [_value(text, paired) for text in record.negatives],
        }
        if teacher is not None:
            assert record.scores is not None
            count = len(record.positives)
            scores = {"pos_scores": record.scores[:count], "neg_scores": record.scores[count:]}
            values |= {**scores, "teacher": teacher}
        line = {**values, **{name: value for name, value in row.others.items() if name not in values}}
        try:
            yield f"{json.dumps(line, ensure_ascii=False)}\n".encode()
        except UnicodeEncodeError:  # a lone surrogate in another column: escaped, it stays what it was
            yield f"{json.dumps(line)}\n".encode()


def _value(text: Instructed, paired: bool) -> Any:
    return [text[0] or "", text[1]] if paired else text[1]
