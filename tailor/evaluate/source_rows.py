"""The rows of data files behind evaluated rows, with all of their columns. Prepared tokens have no columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tailor.encode.readers import Reader
from tailor.encode.sources import find_files
from tailor.errors import DataError
from tailor.evaluate.models import EvaluatedModel
from tailor.evaluate.task_inputs import Location
from tailor.spec.data import Source
from tailor.spec.suite import Suite
from tailor.spec.tasks.rows import Questions

RowKey = tuple[int, str, int]
"""Index of the source, file, and row in it from 1."""


def sources_of(suite: Suite, main: EvaluatedModel) -> tuple[str, Sequence[Source]]:
    """(key, sources) of the evaluation rows: those of the suite, or of the run."""
    if suite.data is not None:
        return "data.evaluation", suite.data.evaluation
    recipe = main.recipe
    assert recipe is not None  # a model without a run has no rows of its own
    if recipe.data.evaluation:
        return "data.evaluation", recipe.data.evaluation
    return "data.train", recipe.data.train


def read(
    sources: Sequence[Source | Questions], key: str, locations: Iterable[Location]
) -> list[Mapping[str, Any]]:
    """The row of each location, as its file has it now. A row that is no object is empty.

    key: of the sources, for messages. DataError when a file or row is gone.
    """
    wanted = [key_of(location) for location in locations]
    files: dict[tuple[int, str], set[int]] = {}
    for source, file, row in wanted:
        files.setdefault((source, file), set()).add(row)
    found: dict[RowKey, Mapping[str, Any]] = {}
    for at in sorted({source for source, _ in files}):
        for part in find_files(sources[at], f"{key}[{at}]"):
            numbers = files.get((at, part.label), set())
            last = max(numbers, default=0)
            for number, row in Reader(part) if last else ():
                if number in numbers:
                    found[at, part.label, number] = row if isinstance(row, Mapping) else {}
                if number >= last:
                    break
    if lost := [one for one in wanted if one not in found]:
        _, file, row = lost[0]
        raise DataError(
            f"{file}:{row} is an evaluated row, but the file does not have it any more",
            hint="evaluate on the file as it is: data: {evaluation: [{path: …}]}",
        )
    return [found[one] for one in wanted]


def first(sources: Sequence[Source | Questions], key: str, count: int) -> Iterator[Mapping[str, Any]]:
    """The first rows of each source, at most `count`."""
    for at, source in enumerate(sources):
        rows = (row for part in find_files(source, f"{key}[{at}]") for _, row in Reader(part))
        yield from (row for row in itertools.islice(rows, count) if isinstance(row, Mapping))


def key_of(location: Location) -> RowKey:
    """The identity of an evaluated row."""
    return int(location["source"]), str(location["file"]), int(location["row"])
