"""Passes no record a second time to a tracker that cannot take back what an interrupted run has already sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailor.track.base import Tracker


class Once:
    """A tracker without the records that it already has. Their steps are trained again, with the same results.

    sent: kind -> step of the last record that an earlier part of the run has passed to its trackers.
    """

    def __init__(self, tracker: Tracker, sent: Mapping[str, int]) -> None:
        self._tracker, self._sent = tracker, sent
        self._step = 0

    def write(self, record: dict[str, Any]) -> None:
        self._step = int(
            record.get("step", self._step)
        )  # the exact match has the step of the record before it
        if self._step > self._sent.get(record["kind"], -1):
            self._tracker.write(record)

    def close(self, *, finished: bool) -> None:
        self._tracker.close(finished=finished)
