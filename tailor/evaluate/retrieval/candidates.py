"""The candidates of each query of a collection: results of a first stage, which a reranker orders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tailor.encode import bm25
from tailor.encode.readers import FileRange, Reader
from tailor.encode.records import RowError
from tailor.encode.sources import find_files
from tailor.errors import DataError
from tailor.evaluate.retrieval.collection import Collection, file_kind
from tailor.evaluate.retrieval.qrels import COLUMNS, DELIMITERS, finite_number, split_lines
from tailor.spec.tasks.rows import Questions

_RUN = 6
"""Columns of TREC's run format: `query Q0 passage rank score tag`."""
Result = tuple[str, str, float, str]
"""Ids of a query and a passage, the score, and the location of its row, for messages."""


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
    results: list[dict[int, float]] = [{} for _ in collection.queries]
    for query, passage, score, location in _results(_file(path, key)):
        if passage not in passages:
            raise DataError(
                f"{location}: no passage {passage!r} in the corpus",
                hint="use the results of the same collection",
            )
        if query in queries:
            results[queries[query]][passages[passage]] = score
    if not any(results):
        raise DataError(
            f"{key} {path}: no result is of a query of the collection",
            hint="use the results of the same collection",
        )
    return [
        sorted(scores, key=lambda passage, scores=scores: -scores[passage])[:depth]  # type: ignore[misc]
        for scores in results
    ]


def check_candidates(path: str, key: str, rows: int) -> None:
    """Check the first `rows` rows of a file of results. DataError as in `read_candidates`."""
    for number, _ in enumerate(_results(_file(path, key)), 1):
        if number >= rows:
            return


def _file(path: str, key: str) -> FileRange:
    kind = file_kind(path)
    return FileRange(path, path, kind) if kind in DELIMITERS else find_files(Questions(path=path), key)[0]


def _results(part: FileRange) -> Iterator[Result]:
    if part.kind in DELIMITERS:
        for number, values in split_lines(part):
            if number == 1 and set(COLUMNS) <= set(values):
                continue
            if len(values) not in (len(COLUMNS), _RUN):
                raise _no_result(f"{part.label}:{number}", f"{len(values)} columns")
            short = len(values) == len(COLUMNS)
            row = values if short else (values[0], values[2], values[4])
            yield _result(dict(zip(COLUMNS, row, strict=True)), f"{part.label}:{number}")
        return
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
    score = finite_number(value)
    if score is None:
        raise DataError(f"{location}: the score {value!r} is not a number")
    return str(query), str(passage), float(score), location


def _no_result(location: str, found: str) -> DataError:
    return DataError(
        f"{location}: a row of candidates has {found}",
        hint="write TREC's run format (query Q0 passage rank score tag), or query-id, corpus-id and score",
    )
