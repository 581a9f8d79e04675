"""Argument types for numbers on the command line, with bounds."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def whole(at_least: int) -> Callable[[str], int]:
    """An argument type: an integer of at least `at_least`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = at_least - 1
        if value < at_least:
            raise argparse.ArgumentTypeError(f"must be an integer >= {at_least}, not {text}")
        return value

    return read


def number(
    *, over: float | None = None, at_least: float = -math.inf, at_most: float = math.inf
) -> Callable[[str], float]:
    """An argument type: a finite number within the bounds (`over` is exclusive)."""
    bounds = [f"> {over:g}"] if over is not None else []
    bounds += [f">= {at_least:g}"] if math.isfinite(at_least) else []
    bounds += [f"<= {at_most:g}"] if math.isfinite(at_most) else []

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if (
            not math.isfinite(value)
            or value < at_least
            or value > at_most
            or (over is not None and value <= over)
        ):
            raise argparse.ArgumentTypeError(f"must be a number {' and '.join(bounds)}, not {text}")
        return value

    return read
