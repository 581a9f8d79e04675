"""What a tracker is, and what opens one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tailor.store import Store


class Tracker(Protocol):
    """Takes every metric record of rank 0, in order."""

    def write(self, record: dict[str, Any]) -> None: ...

    def close(self, *, finished: bool) -> None:
        """No record comes any more. finished: the run came to its end, and did not stop before."""
        ...


class Opener(Protocol):
    """A tracker's class, or a function that returns a tracker: the `implementation` of its section."""

    def __call__(self, section: Any, run: Store, *, after_step: int, tell: Callable[[str], None]) -> Tracker:
        """section: the tracker's keys (a `TrackerSection`). run: the run's folder.

        after_step: the step that the run resumes from, 0 for a new run. Records of later steps that an interrupted
        run has already sent come again.
        tell: shows the user a message that does not end the run.
        Raises StoreError when the tracker cannot work, such as for missing credentials: training does not begin.
        """
        ...
