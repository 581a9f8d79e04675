"""The interfaces of a tracker and of its constructor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tailor.store import Store


class Tracker(Protocol):
    """Receives every metric record of rank 0, in order."""

    def write(self, record: dict[str, Any]) -> None: ...

    def close(self, *, finished: bool) -> None:
        """Called after the last record. finished: whether the run completed all its steps."""
        ...


class Opener(Protocol):
    """A tracker's class, or a function that returns a tracker: the `implementation` of its section."""

    def __call__(self, section: Any, run: Store, *, after_step: int, warn: Callable[[str], None]) -> Tracker:
        """Open the tracker. section: the tracker's keys (a `TrackerSection`). run: the run's folder.

        after_step: the step from which the run resumes, 0 for a new run. Steps after it are trained again, so records
        that an interrupted run has already sent are written a second time, unless the section sets `rewinds = False`.
        warn: shows the user a message without ending the run.
        Raises StoreError, which ends the run before training, when the tracker cannot work, for example without credentials.
        """
        ...
