"""The candidates of each query of a collection: results of a first stage, which a reranker orders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import has_magic
from typing import Any

import numpy as np

from tailor.encode import bm25
from tailor.encode.readers import FileRange, Reader
from tailor.encode.records import RowError
from tailor.encode.sources import find_files
from tailor.errors import DataError
from tailor.evaluate.retrieval.collection import Collection, file_kind
from tailor.evaluate.retrieval.qrels import COLUMNS, DELIMITERS, finite_number, require_id, split_lines
from tailor.spec.tasks.rows import Questions

_RUN = 6
"""Columns of TREC's run format: `query Q0 passage rank score tag`."""
_HINT = (
    "write TREC's run format (query Q0 passage rank score tag), or query-id, corpus-id and score with these names in the "
    "first line"
)


@dataclass(frozen=True)
class Result:
    """A passage that the first stage found for a query. location: of its row, for messages."""

    query: str
    passage: str
    score: float
    location: str


def by_bm25(collection: Collection, depth: int, only: list[list[int]] | None = None) -> list[list[int]]:
    """The `depth` best passages of each query by BM25, best first, of those that share a word with it.

    only: for each query, the passages to order instead, all of which are kept up to `depth`.
    """
    index = bm25.Index([passage.text for passage in collection.corpus])
    found = []
    for number, query in enumerate(collection.queries):
        scores = index.scores(query.text)  # [P]
        own = np.flatnonzero(scores > 0) if only is None else np.array(only[number])
        best = own[np.argsort(-scores[own], kind="stable")][:depth]
        found.append([int(passage) for passage in best])
    return found


def read_candidates(path: str, key: str, collection: Collection, depth: int) -> list[list[int]]:
    """The `depth` passages of each query with the highest scores in a file of results, best first.

    Results of queries that the collection does not evaluate are not used. DataError for a row that is no result, a passage
    outside the corpus, and when no query has results.
    """
    queries = {one.id: number for number, one in enumerate(collection.queries)}
    passages = {one.id: number for number, one in enumerate(collection.corpus[: collection.passages])}
    results: list[dict[int, Result]] = [{} for _ in collection.queries]
    for row in _all_results(path, key):
        if row.passage not in passages:
            raise DataError(
                f"{row.location}: no passage {row.passage!r} in the corpus",
                hint="use the results of the same collection",
            )
        if row.query in queries:
            earlier = results[queries[row.query]].setdefault(passages[row.passage], row)
            if earlier.score != row.score:
                raise DataError(
                    f"{row.location}: query {row.query!r} and passage {row.passage!r} have the score {row.score:g}, but "
                    f"{earlier.score:g} in {earlier.location}",
                    hint="remove one of the two rows",
                )
    if not any(results):
        raise DataError(
            f"{key} {path}: no result is of a query of the collection",
            hint="use the results of the same collection",
        )
    return [
        sorted(found, key=lambda passage, found=found: -found[passage].score)[:depth]  # type: ignore[misc]
        for found in results
    ]


def check_candidates(path: str, key: str, rows: int) -> None:
    """Check the first `rows` rows of a file of results. DataError as in `read_candidates`."""
    for number, _ in enumerate(_all_results(path, key), 1):
        if number >= rows:
            return


def _all_results(path: str, key: str) -> Iterator[Result]:
    """The results of all files of a path."""
    kind = file_kind(path)
    if kind in DELIMITERS and not has_magic(path):
        parts = [FileRange(path, path, kind)]
    else:
        parts = find_files(Questions(path=path), key)
    for part in parts:
        yield from _lines(part) if part.kind in DELIMITERS else _rows(part)


def _lines(part: FileRange) -> Iterator[Result]:
    header: list[str] | None = None
    for at, (number, values) in enumerate(split_lines(part)):
        location = f"{part.label}:{number}"
        if at == 0 and set(COLUMNS) <= set(values):
            header = values
        elif header is not None:
            if len(values) != len(header):
                raise _no_result(location, f"{len(values)} columns, and the header has {len(header)}")
            yield _result(dict(zip(header, values, strict=True)), location)
        elif len(values) in (len(COLUMNS), _RUN):
            row = values if len(values) == len(COLUMNS) else (values[0], values[2], values[4])
            yield _result(dict(zip(COLUMNS, row, strict=True)), location)
        else:
            raise _no_result(location, f"{len(values)} columns")


def _rows(part: FileRange) -> Iterator[Result]:
    for number, row in Reader(part):
        location = f"{part.label}:{number}"
        if isinstance(row, RowError):
            raise DataError(f"{location}: {row.detail or row.reason}")
        if not isinstance(row, Mapping) or not set(COLUMNS) <= set(row):
            raise _no_result(
                location, "the keys " + ", ".join(map(str, row)) if isinstance(row, Mapping) else "no keys"
            )
        yield _result(row, location)


def _result(row: Mapping[str, Any], location: str) -> Result:
    query, passage, value = (row[column] for column in COLUMNS)
    for column, name in zip(COLUMNS, (query, passage), strict=False):
        require_id(name, column, location)
    score = finite_number(value)
    if score is None:
        raise DataError(f"{location}: the score {value!r} is not a finite number", hint=_HINT)
    return Result(str(query), str(passage), float(score), location)


def _no_result(location: str, found: str) -> DataError:
    return DataError(
        f"{location}: a row of candidates has {found}",
        hint=_HINT,
    )
