"""`track`: trackers that show the metrics, beside the run's own log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field, create_model

from tailor.registry import Registry, check_section
from tailor.spec.base import Section
from tailor.spec.trackers import TrackerSection

TRACKERS: Registry[type[TrackerSection]] = Registry(
    "tailor.trackers",
    {
        "tensorboard": "tailor.spec.trackers:TensorBoard",
        "wandb": "tailor.spec.trackers:Wandb",
        "mlflow": "tailor.spec.trackers:Mlflow",
    },
)


def with_trackers(section: type[Track]) -> type[Track]:
    """Class decorator: add a key for each registered tracker to the section."""
    fields: dict[str, Any] = {}
    for name in TRACKERS.names():
        tracker = TRACKERS.get(name)
        check_section(TRACKERS.group, name, tracker, TrackerSection, ("implementation", "help"))
        if tracker.model_fields:
            fields[name] = (tracker | None, Field(None, description=tracker.help))
        else:
            fields[name] = (bool, Field(tracker.on_by_default, description=tracker.help))
    return create_model(
        section.__name__, __base__=section, __module__=section.__module__, __doc__=section.__doc__, **fields
    )


@with_trackers
class Track(Section):
    """Trackers that show the metrics during training.

    The run's own `metrics.jsonl` and `report.html` are always written.
    """

    def chosen(self) -> Iterator[tuple[str, TrackerSection]]:
        """The trackers that are turned on, as (name, section)."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, TrackerSection):
                yield name, value
            elif value:
                yield name, TRACKERS.get(name)()
