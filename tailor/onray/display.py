"""What a command is shown on: the one interface between Ray's jobs and the terminal (`tailor.cli.display`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tailor.encode.prepare import Progress
    from tailor.runs.log import Record


class Display(Protocol):
    """Each method shows nothing by default, so that a subclass defines only what it shows."""

    def doing(self, what: str) -> None:
        """The current activity, shown until the next call of `doing` or `line`."""

    def line(self, text: str) -> None:
        """A line that stays."""

    def preparing(self, progress: Progress) -> None:
        """How far preparation is."""

    def evaluating(self, done: int, total: int, seconds_left: float | None) -> None:
        """How many rows of an evaluation are done. seconds_left: None while it is unknown."""

    def embedding(self, done: int, total: int, seconds_left: float | None) -> None:
        """How many rows of `tailor embed` are done. seconds_left: None while it is unknown."""

    def training(self, steps: int, step: int) -> None:
        """Training begins at `step` and ends at `steps`."""

    def record(self, record: Record) -> None:
        """One metric record of rank 0."""
