"""The results of an lm-eval task: its metrics as sums over rows, its scores by context length, and its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tailor.evaluate.figures import PerRow, exponential, mean, ratio

ROLLING = {"word_perplexity": 1.0, "byte_perplexity": 1.0, "bits_per_byte": math.log(2)}
"""Metrics whose rows are (log-likelihood, number of words or bytes) -> divisor of the log-likelihood, such as ln 2 for bits."""
OTHER_LENGTH = -1.0
"""What tasks report for a length that none of their rows, or not this row, has."""

Report = dict[str, Any]
"""The results of one named task: `task`, `is_group`, `versions`, the metrics `reported` by lm-eval, `rows`, and `cut`: the
number of rows of each task whose prompts were too long for the model.
"""


def figures(report: Report) -> dict[str, PerRow]:
    """The metrics of a task that follow from its rows: `TASK/METRIC`, or `TASK/METRIC/FILTER`.

    They are ratios of sums over the rows, or, of a group, means of these over its tasks. A group also has the metrics by
    context length of its tasks (RULER), of which lm-eval reports only that of 4,096. Other metrics that lm-eval reports
    (corpus-level ones, such as BLEU, or values outside 0 to 1) cannot be resampled by rows and have no confidence
    interval. They are only in results.json.
    """
    found: dict[str, PerRow] = {}
    for key, reported in _reported(report).items():
        metric, _, filtered = key.partition(",")
        by_task = _values(report, metric, filtered)
        pooled = [value for values in by_task.values() for value in values]
        for made in (
            _per_row(metric, pooled, lower=reported["lower"]),
            _mean_of_tasks(by_task, lower=reported["lower"]) if report["is_group"] else None,
        ):
            if made is not None and math.isclose(made.value, reported["value"], rel_tol=1e-6, abs_tol=1e-9):
                found[_name(report, key)] = made
                break
    if report["is_group"]:
        for length in _lengths(report):
            made = _mean_of_tasks(_values(report, str(length), "none"), lower=False)
            if made is not None:
                found.setdefault(f"{report['task']}/{length}", made)
    return found


def by_length(report: Report) -> dict[int, float]:
    """Context length -> score, for a task with a metric for each length. Empty for others."""
    known = figures(report)
    names = {length: f"{report['task']}/{length}" for length in _lengths(report)}
    return {length: known[name].value for length, name in names.items() if name in known}


def notes(report: Report) -> list[str]:
    """A line for each reported metric that `figures` leaves out, and for each task whose prompts were shortened."""
    known = figures(report)
    left_out = [
        f"lm_eval: {name} is {reported['value']:.4g}; it is not a mean over rows, so it has no confidence interval and is only in results.json"
        for key, reported in _reported(report).items()
        if (name := _name(report, key)) not in known
    ]
    rows = {
        task: {row["shared"]["row"] for row in report["rows"] if row["shared"]["task"] == task}
        for task in report["cut"]
    }
    return left_out + [
        f"lm_eval: {count:,} of {len(rows[task]):,} prompts of {task} are longer than the model's positions: lm-eval left out their start"
        for task, count in report["cut"].items()
    ]


def _reported(report: Report) -> dict[str, dict[str, Any]]:
    """The reported metrics without those of lengths that no row has."""
    return {
        key: one
        for key, one in report["reported"].items()
        if not (key.partition(",")[0].isdigit() and one["value"] == OTHER_LENGTH)
    }


def _lengths(report: Report) -> list[int]:
    """The context lengths of the rows, from metrics whose names are lengths."""
    return sorted(
        {
            int(metric)
            for row in report["rows"]
            for metric, value in row["own"].items()
            if metric.isdigit() and value != OTHER_LENGTH
        }
    )


def _name(report: Report, key: str) -> str:
    metric, _, filtered = key.partition(",")
    return "/".join(part for part in (report["task"], metric, filtered) if part != "none")


def as_rows(reports: Sequence[Report]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(fields shared by all models, fields of this model) of each row."""
    return [(row["shared"], row["own"]) for report in reports for row in report["rows"]]


def _values(report: Report, metric: str, filtered: str) -> dict[str, list[Any]]:
    """The metric of each row that has it, by task."""
    found: dict[str, list[Any]] = {}
    for row in report["rows"]:
        own, shared = row["own"], row["shared"]
        of_length = not metric.isdigit() or own.get(metric) != OTHER_LENGTH
        if shared["filter"] == filtered and metric in own and of_length:
            found.setdefault(shared["task"], []).append(own[metric])
    return found


def _mean_of_tasks(by_task: dict[str, list[Any]], *, lower: bool) -> PerRow | None:
    """The mean of the tasks' means. A bootstrap sample may lack a task: it is then that of the others."""
    if not by_task or any(_per_row("", values, lower=lower) is None for values in by_task.values()):
        return None
    tasks = len(by_task)
    statistics = np.zeros(
        (sum(map(len, by_task.values())), 2 * tasks)
    )  # [rows, sums and counts of each task]
    start = 0
    for at, values in enumerate(by_task.values()):
        statistics[start : start + len(values), at] = values
        statistics[start : start + len(values), tasks + at] = 1
        start += len(values)

    def function(sums: np.ndarray) -> np.ndarray:
        over, under = sums[..., :tasks], sums[..., tasks:]
        means = np.divide(over, under, out=np.zeros_like(over), where=under > 0)
        found: np.ndarray = means.sum(-1) / (under > 0).sum(-1)
        return found

    return PerRow(statistics, function, lower_is_better=lower)


def _per_row(metric: str, values: list[Any], *, lower: bool) -> PerRow | None:
    if not values:
        return None
    if metric in ROLLING:
        over, under = ([float(value[at]) for value in values] for at in (0, 1))
        losses = [-one / ROLLING[metric] for one in over]
        if metric != "bits_per_byte":
            return exponential(losses, under)
        return ratio(losses, under, lower_is_better=True, is_share=False)
    if not all(isinstance(value, bool | int | float) and 0 <= value <= 1 for value in values):
        return None
    return replace(mean(values), lower_is_better=lower)


def row_of(task: str, sample: dict[str, Any]) -> dict[str, Any]:
    """A row of a task from lm-eval's record of it."""
    first = sample["arguments"][0]
    question = first[0] if isinstance(first, list | tuple) else str(first)
    return {
        "shared": {
            "task": task,
            "filter": sample["filter"],
            "row": int(sample["doc_id"]) + 1,
            "prompt": str(question),
            "reference": sample["target"]
            if isinstance(sample["target"], str | int | list)
            else str(sample["target"]),
        },
        "own": {
            "answers": sample["filtered_resps"],
            **{metric: sample[metric] for metric in sample["metrics"]},
        },
    }
