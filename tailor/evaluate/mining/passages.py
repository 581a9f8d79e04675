"""The passages that may become negatives, and those that may not, by query.

Two texts are the same if they have the same words: case, spaces and punctuation make no difference. The data doctor compares
them in the same way (`false_negatives`, `contradictory_negatives`, `repeated_negatives`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tailor.encode.columns import require_columns
from tailor.encode.counted_rows import CountedRows
from tailor.encode.readers import FileRange, Reader
from tailor.encode.records import Instructed, Relevance, RowError
from tailor.encode.similarity.words import content
from tailor.errors import DataError
from tailor.evaluate.embed_file import NamedColumns, Request, find_input, text_of
from tailor.evaluate.mining.rows import first_of


@dataclass
class Passages:
    """Distinct passages. duplicates: passages that repeat an earlier one. unreadable: rows of the corpus without one."""

    texts: list[Instructed] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    """Content of a text -> its index in `texts`."""
    duplicates: int = 0
    unreadable: CountedRows = field(default_factory=CountedRows)

    def add(self, passage: Instructed) -> int:
        """The index of the passage, or of the earlier one with the same text."""
        number = self.numbers.setdefault(content(passage[1]), len(self.texts))
        if number == len(self.texts):
            self.texts.append(passage)
        else:
            self.duplicates += 1
        return number


def passages_of_rows(records: Iterable[Relevance]) -> Passages:
    """The distinct passages of all rows, relevant or not."""
    found = Passages()
    for record in records:
        for passage in (*record.positives, *record.negatives):
            found.add(passage)
    return found


def read_passages(path: str, columns: Sequence[str], instruction: str | None) -> Passages:
    """The distinct passages of a corpus. A row without a text is left out and counted.

    columns: of the text, as in `tailor embed`. DataError when no row has one of the columns, and when there is no passage.
    """
    request = Request(path, tuple(columns))
    parts = find_input(request)
    found, seen = Passages(), NamedColumns(request)
    for part in parts:
        for number, row in Reader(part):
            try:
                text = text_of(row, request, seen)
            except RowError as error:
                found.unreadable.add(part.label, number, error.detail or error.reason)
            else:
                found.add((instruction, text))
    _require(found, seen, parts, path)
    return found


def _require(found: Passages, seen: NamedColumns, parts: Sequence[FileRange], path: str) -> None:
    require_columns(seen.named, seen.found, seen.keys, parts, f"--corpus {path}")
    if not found.texts:
        raise DataError(f"--corpus {path}: no passage{first_of(found.unreadable)}")


def common_instruction(records: Iterable[Relevance]) -> str | None:
    """The instruction of all positive passages. DataError if they have several."""
    found = {instruction or None for record in records for instruction, _ in record.positives}
    if len(found) > 1:
        raise DataError(
            f"the positive passages of the rows have {len(found)} different instructions, so that of the corpus is unknown",
            hint='name it with --corpus-instruction (--corpus-instruction "" for none)',
        )
    return found.pop()


def excluded_pairs(records: Sequence[Relevance], passages: Passages) -> np.ndarray:
    """int64[k, 2]: pairs (query, passage) that must not become negatives.

    These are passages with the text of the query, or of a positive that any row gives for a query with the same text.
    """
    known: dict[int, set[int]] = {}
    for record in records:
        query = content(record.query[1])
        known.setdefault(query, {query}).update(content(text) for _, text in record.positives)
    pairs = [
        (number, passages.numbers[text])
        for number, record in enumerate(records)
        for text in sorted(known[content(record.query[1])] & passages.numbers.keys())
    ]
    return np.array(pairs, np.int64).reshape(-1, 2)
