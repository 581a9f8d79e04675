"""Experiment trackers, which get the metrics in addition to the run's own log. One file per tracker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from tailor.errors import ExtensionError
from tailor.track.base import Tracker
from tailor.track.once import Once

if TYPE_CHECKING:
    from tailor.spec.track import Track
    from tailor.spec.trackers import TrackerSection
    from tailor.store import Store
    from tailor.track.base import Opener

__all__ = ["Tracker", "open_trackers"]


def open_trackers(
    track: Track,
    run: Store,
    *,
    after_step: int = 0,
    sent: Mapping[str, int] | None = None,
    warn: Callable[[str], None] = print,
) -> list[Tracker]:
    """Open the trackers of a recipe. `tailor.track.base.Opener` explains the arguments.

    sent: kind -> step of the last record that earlier parts of the run have passed to their trackers
    (`tailor.runs.log.MetricsLog.sent`). Trackers that cannot rewind do not get these records again. ExtensionError when a
    tracker cannot be imported, StoreError when it cannot be opened.
    """
    opened: list[Tracker] = []
    for name, section in track.chosen():
        tracker = _opener(name, section)(section, run, after_step=after_step, warn=warn)
        opened.append(tracker if section.rewinds else Once(tracker, sent or {}))
    return opened


def _opener(name: str, section: TrackerSection) -> Opener:
    module, _, attribute = section.implementation.partition(":")
    try:
        opener: Opener = getattr(import_module(module), attribute)
    except Exception as error:  # code of another package may raise any error
        raise ExtensionError(
            f"track.{name}: {section.implementation} cannot be loaded: {type(error).__name__}: {error}",
            hint="install a compatible version of its package, or remove the key",
        ) from error
    return opener
