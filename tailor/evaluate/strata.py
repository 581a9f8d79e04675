"""Figures per value of a column: the rows of a task are split by the value that a column has in their data files."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tailor.errors import DataError
from tailor.evaluate import figures, source_rows
from tailor.evaluate.figures import PerRow
from tailor.evaluate.models import EvaluatedModel
from tailor.evaluate.task_inputs import TaskInputs
from tailor.evaluate.tasks.base import TaskEvaluator
from tailor.spec.data import Source
from tailor.spec.suite import Intervals, Suite
from tailor.spec.tasks.rows import Questions

MAX_VALUES = 20
"""Values of a column with figures of their own, the most frequent ones. The rows of all others are one group."""
OTHERS, NONE = "(others)", "(none)"


def column_of(
    evaluator: TaskEvaluator[Any], inputs: TaskInputs, suite: Suite, main: EvaluatedModel
) -> tuple[str, list[str]] | None:
    """(column, value of each row) of a task whose figures are split. None without `by`.

    DataError when no row has the column.
    """
    task = evaluator.spec
    sources: Sequence[Source | Questions]
    if task.on_rows:
        column = suite.by
        key, sources = source_rows.sources_of(suite, main) if column is not None else ("", [])
    else:
        data = getattr(task, "data", None)
        column = data.by if isinstance(data, Questions) else None
        key, sources = f"{evaluator.key}.data", [data] if data is not None else []
    if column is None:
        return None
    rows = source_rows.read(sources, key, inputs.locations)
    require_column(column, rows)
    return column, grouped([row.get(column) for row in rows])


def require_column(column: str, rows: Iterable[Mapping[str, Any]], prefix: str = "") -> None:
    """DataError when no row has the column. prefix: of the message."""
    known: set[str] = set()
    for row in rows:
        if column in row:
            return
        known.update(map(str, row))
    raise DataError(
        f"{prefix}by: no row has a column {column}",
        hint=f"the rows have {', '.join(sorted(known)[:20]) or 'no columns'}",
    )


def grouped(values: Sequence[Any]) -> list[str]:
    """The group of each row: the value as text, with `(none)` for a row without one and `(others)` for rare values."""
    names = [_text(value) for value in values]
    counts = Counter(name for name in names if name != NONE)
    if len(counts) <= MAX_VALUES:
        return names
    kept = {name for name, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_VALUES]}
    return [name if name in kept or name == NONE else OTHERS for name in names]


def table(
    groups: Sequence[str], models: Mapping[str, Mapping[str, PerRow]], settings: Intervals
) -> list[dict[str, Any]]:
    """One entry per value, the most frequent first: `value`, `rows`, and `figures` as in the table of all rows.

    groups: of each row. models: the figures of a task by model; those that are not over these rows are left out.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    entries = []
    for group, rows in sorted(
        members.items(), key=lambda pair: (pair[0] in (OTHERS, NONE), -len(pair[1]), pair[0])
    ):
        own = {
            model: {name: one.of(rows) for name, one in by_name.items() if len(one) == len(groups)}
            for model, by_name in models.items()
        }
        # A figure without a value in this group, such as one whose rows are all left out, is not reported.
        usable = {
            name
            for name in next(iter(own.values()))
            if all(name in by_name and math.isfinite(by_name[name].value) for by_name in own.values())
        }
        kept = {
            model: {name: one for name, one in by_name.items() if name in usable}
            for model, by_name in own.items()
        }
        entries.append({"value": group, "rows": len(rows), "figures": figures.table(kept, settings)})
    return entries


def _text(value: Any) -> str:
    if value is None or value == "":
        return NONE
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
