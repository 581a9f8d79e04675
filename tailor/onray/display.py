"""The interface through which commands report progress. `tailor.cli.display` implements it for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tailor.encode.prepare import Progress
    from tailor.plan import Plan
    from tailor.runs.log import Record


class Display(Protocol):
    """Every method does nothing by default, so a subclass defines only what it shows."""

    def doing(self, what: str) -> None:
        """The current activity, shown until the next call of `doing` or `line`."""

    def line(self, text: str) -> None:
        """A status line, shown permanently."""

    def preparing(self, progress: Progress) -> None:
        """Progress of data preparation."""

    def evaluating(self, done: int, total: int, seconds_left: float | None) -> None:
        """Number of rows of an evaluation that are done. seconds_left: None while it is unknown."""

    def embedding(self, done: int, total: int, seconds_left: float | None) -> None:
        """Number of rows of `tailor embed` that are done. seconds_left: None while it is unknown."""

    def planned(self, plan: Plan, step: int) -> None:
        """The plan of the run, which starts after `step`."""

    def training(self, steps: int, step: int) -> None:
        """Training starts after step `step` and ends after step `steps`."""

    def record(self, record: Record) -> None:
        """A metric record of rank 0."""
