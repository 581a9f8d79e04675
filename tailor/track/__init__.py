"""Trackers: where curves can be watched, beside the run's own log. One file per tracker."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from tailor.errors import ExtensionError
from tailor.track.base import Tracker

if TYPE_CHECKING:
    from tailor.spec.track import Track
    from tailor.spec.trackers import TrackerSection
    from tailor.store import Store
    from tailor.track.base import Opener

__all__ = ["Tracker", "open_trackers"]


def open_trackers(
    track: Track, run: Store, *, after_step: int = 0, tell: Callable[[str], None] = print
) -> list[Tracker]:
    """The trackers that a recipe asks for; see `tailor.track.base.Opener` for the arguments."""
    return [
        _opener(name, section)(section, run, after_step=after_step, tell=tell)
        for name, section in track.chosen()
    ]


def _opener(name: str, section: TrackerSection) -> Opener:
    module, _, attribute = section.implementation.partition(":")
    try:
        opener: Opener = getattr(import_module(module), attribute)
    except Exception as error:  # the code of another package may raise anything
        raise ExtensionError(
            f"track.{name}: {section.implementation} cannot be loaded: {type(error).__name__}: {error}",
            hint="install a version of its package that works with this one, or leave the key out",
        ) from error
    return opener
