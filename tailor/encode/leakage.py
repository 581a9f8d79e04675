"""Rows of evaluation sources that are training rows, found by a hash of their content, over all sources.

The tasks of the evaluation sources come first. Those of the training sources then report the hashes that they have in
common, so that no process keeps a hash of every training row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tailor.encode.counted_rows import NAMED
from tailor.encode.report import NO_HASHES, TaskReport


def distinct_hashes(reports: Iterable[TaskReport]) -> np.ndarray:
    """uint64[n]: the hashes that tasks reported, each once."""
    return np.unique(np.concatenate([NO_HASHES, *(report.hashes for report in reports)]))


def leaks(own: Sequence[TaskReport], training: Iterable[TaskReport]) -> dict[str, Any]:
    """How many rows of an evaluation source are training rows, and the first of them.

    own: the reports of the source's tasks; training: those of all training tasks. Rows are equal when their content is; answers
    to one prompt and passages of one query count as one.
    """
    trained = distinct_hashes(training)
    count, first = 0, []
    for report in own:
        at = np.flatnonzero(np.isin(report.hashes, trained))
        count += len(at)
        first += ["{}:{}".format(*report.hashed_rows[index]) for index in at[: NAMED - len(first)]]
    return {"count": count, "first": first}
