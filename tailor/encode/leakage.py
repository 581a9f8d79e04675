"""Evaluation rows that are training rows, found by a hash of their content, over all sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tailor.encode.counted_rows import NAMED
from tailor.encode.report import TaskReport


def leaks(own: Sequence[TaskReport], everything: Sequence[TaskReport]) -> dict[str, Any]:
    """How many rows of an evaluation source are training rows, and the first of them.

    Rows are equal when their content is; answers to one prompt and passages of one query count as one.
    """
    hashes = [report.hashes["train"] for report in everything if "train" in report.hashes]
    trained = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    count, first = 0, []
    for report in own:
        mine = report.hashes.get("evaluation")
        if mine is None:
            continue
        at = np.flatnonzero(np.isin(mine, trained))
        count += len(at)
        first += ["{}:{}".format(*report.hashed_rows[index]) for index in at[: NAMED - len(first)]]
    return {"count": count, "first": first}
