"""Counts the work of Python code, for bounds that a busy machine cannot break."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def executed_lines(action: Callable[[], Any]) -> int:
    """Number of lines of Python that `action` executes in this thread. The work inside compiled functions counts nothing."""
    count = 0

    def traced(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return traced

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


def grows_linearly(action: Callable[[int], Any], size: int) -> bool:
    """Whether four times the size takes at most six times the lines: 4 if it is linear, 16 if it is quadratic."""
    return executed_lines(lambda: action(4 * size)) <= 6 * executed_lines(lambda: action(size))
