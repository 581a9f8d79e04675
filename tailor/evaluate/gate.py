"""The gate of an evaluation: the conditions of `fail_if`, checked against the figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from tailor.errors import DataError
from tailor.spec.bounds import Bound, parse


def require_compared(fail_if: Mapping[str, str], labels: Mapping[str, str]) -> None:
    """DataError for a condition on a model that is not compared. labels: model as `compare` names it -> its label."""
    for figure, text in fail_if.items():
        bound = _parsed(text)
        if bound.model is not None and bound.model not in labels:
            compared = f"the compared models are {', '.join(labels)}" if labels else "no model is compared"
            raise DataError(
                f"fail_if: {figure}: {text}: {bound.model} is not compared: {compared}",
                hint=f"add it: compare: [{', '.join([*labels, bound.model])}]",
            )


def broken_bounds(
    fail_if: Mapping[str, str], entries: list[dict[str, Any]], labels: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A message for each condition that the first model fulfills. DataError for an unknown figure.

    Point estimates decide, not their intervals. A figure that is not finite fails, and so does one without a value of
    the model to compare with.
    """
    values = {
        entry["figure"]: {name: one["value"] for name, one in entry["models"].items()} for entry in entries
    }
    if unknown := [figure for figure in fail_if if figure not in values]:
        raise DataError(
            f"fail_if: unknown figure {unknown[0]}; the tasks report {', '.join(values)}",
            hint="correct it, and run the same command again: finished batches are reused",
        )
    for figure, text in fail_if.items():
        bound = _parsed(text)
        value = next(iter(values[figure].values()))
        limit, of_model = bound.number, ""
        if bound.model is not None:
            other = values[figure][(labels or {})[bound.model]]
            limit, of_model = other + bound.number, f"; {figure} of {bound.model} is {other:.4g}"
        if bound.holds(value, limit) or not math.isfinite(value) or not math.isfinite(limit):
            yield f"{figure} is {value:.4g}, and fail_if says {bound.sign} {bound.text}{of_model}"


def _parsed(text: str) -> Bound:
    bound = parse(text)
    assert bound is not None  # the rules of the file check it
    return bound
