"""A clock that goes on when it is slept: waits of minutes take no time."""

from __future__ import annotations


class Clock:
    """Stands in for a module's `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
