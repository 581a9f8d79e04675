"""What a check sees: one row with its record and tokens, the counts of a task, and the counts of all tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from tailor.encode.doctor.finding import NAMED, Found
from tailor.encode.masks import EncodedExample
from tailor.encode.records import Chat, Completion, Pair, Rated, Record, Relevance, RowError, Text
from tailor.encode.similarity.texts import HashedTexts, Texts, texts_of
from tailor.spec.data import Data
from tailor.spec.methods.union import Method

COLUMNS: dict[str, type[np.generic]] = {
    "source": np.int16,
    "split": np.uint8,
    "file": np.int32,
    "number": np.int64,
    "hash": np.uint64,
    "content": np.uint64,
    "long_answer": np.bool_,
    "answer_tokens": np.int32,
    "script": np.uint8,
    "language": np.uint8,
    "tokens": np.int32,
    "label": np.uint8,
    "rated": np.uint64,
}
"""The columns of `Tally` and their types: 48 bytes per row."""


@dataclass
class Row:
    """One row. source: its index among all sources. split: where it goes, after the holdout. number: in its file range.

    index: among the task's records.

    record: None for a row that cannot be read. examples: its tokens at full length; None when they cannot be made.
    error: why preparation leaves the row out.
    """

    source: int
    split: str
    label: str
    number: int
    index: int
    record: Record | None
    examples: list[EncodedExample] | None
    error: RowError | None

    @cached_property
    def texts(self) -> Texts:
        assert self.record is not None
        return texts_of(self.record)

    @cached_property
    def hashed(self) -> HashedTexts:
        return HashedTexts.of(self.texts)

    @cached_property
    def messages(self) -> list[dict[str, Any]]:
        """The messages of a conversation, of a pair those of its chosen answer. Empty for other records."""
        record = self.record
        answer = (
            record.chosen
            if isinstance(record, Pair)
            else record.answer
            if isinstance(record, Rated)
            else record
        )
        return answer.messages if isinstance(answer, Chat) else []

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """The last learned answer of each conversation or prompt. Empty for plain texts and texts to embed."""
        record = self.record
        if isinstance(record, Pair):
            both = [_last(record.chosen), _last(record.rejected)]
            return tuple(text for text in both if text)
        answer = record.answer if isinstance(record, Rated) else record
        if isinstance(answer, Text | Relevance) or answer is None:
            return ()
        assert isinstance(answer, Chat | Completion)
        last = _last(answer)
        return (last,) if last else ()


def _last(answer: Chat | Completion) -> str:
    if isinstance(answer, Completion):
        return answer.response
    last = answer.messages[-1] if answer.messages else {}
    is_text = last.get("role") == "assistant" and not last.get("tool_calls")
    content: str = last.get("content") or "" if is_text else ""
    return content


@dataclass
class Tally:
    """What the checks found in one task.

    found: kind -> rows. columns: name -> one value per record. pools: name -> (index of the record, value), any number
    per record. signatures: blocks of uint32 [n, WIDTH], none if they are not needed.
    """

    number: int
    rows: int = 0
    lines: dict[str, int] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    found: dict[str, Found] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    pools: dict[str, Any] = field(default_factory=dict)
    signatures: list[np.ndarray] = field(default_factory=list)

    def add(self, kind: str, row: Row, detail: str) -> None:
        """Count a row of a kind."""
        self.found.setdefault(kind, Found()).add(row.label, row.number, detail)

    def put(self, column: str, value: Any) -> None:
        """The value of the current record in a column. Each record has one."""
        self.columns.setdefault(column, []).append(value)

    def pool(self, name: str, row: Row, values: Sequence[int]) -> None:
        self.pools.setdefault(name, []).extend((row.index, value) for value in values)


@dataclass
class Examined:
    """The counts of all tasks, in the order of the recipe. Rows with a record are numbered from 0.

    sources: name of each source in messages. first: for each row the first row of its group of near duplicates; None
    when they were not looked for.
    """

    data: Data
    method: Method
    sources: list[str]
    rows: int
    found: dict[str, Found]
    columns: dict[str, np.ndarray]
    pools: dict[str, np.ndarray]
    files: list[str]
    near: np.ndarray | None

    def name(self, row: int) -> tuple[str, int]:
        """(file label, row number) of a row."""
        return self.files[int(self.columns["file"][row])], int(self.columns["number"][row])

    def named(self, rows: Sequence[int] | np.ndarray, details: Sequence[str] | None = None) -> Found:
        """Rows by their numbers, with a detail for each of the first ones."""
        found = Found()
        for at, row in enumerate(rows):
            if len(found.first) == NAMED:
                break
            found.add(*self.name(int(row)), details[at] if details else "")
        found.count = len(rows)
        return found

    def by_source(self, mask: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """(name of the source, row numbers) of the rows of a mask, for each source that has some."""
        for source, name in enumerate(self.sources):
            rows = np.flatnonzero(mask & (self.columns["source"] == source))
            if len(rows):
                yield name, rows
