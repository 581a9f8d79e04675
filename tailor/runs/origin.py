"""`origin.json`: the changes of recipe of a run that `save.resume` has resumed with other values.

A list, oldest first. Each entry names the checkpoint from which the run was resumed, and the keys that changed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tailor.layout import METRICS, ORIGIN
from tailor.runs.log import before, read, to_json

if TYPE_CHECKING:
    from tailor.store import Store


@dataclass(frozen=True)
class Origin:
    """One change of the recipe."""

    run: str
    """URL of the run whose checkpoint was loaded."""
    step: int
    checkpoint: str
    """URL of that checkpoint."""
    changes: dict[str, list[Any]]
    """Key -> old and new value."""
    first_step: int
    """The step at which the current data start: 0, or the step of the last change of data or batches."""


def origins(run: Store) -> list[Origin]:
    """All changes of a run's recipe, oldest first."""
    return [Origin(**entry) for entry in run.read_json(ORIGIN)] if run.exists(ORIGIN) else []


def begin(run: Store, source: Store, origin: Origin) -> None:
    """Write `origin.json` of `run`, including the changes of `source`, and copy the metric records of `source` up to the checkpoint."""
    entries = [entry for entry in origins(source) if entry != origin] + [origin]
    if run.url != source.url:
        kept = before(read(source), origin.step)
        run.write_text(METRICS, "".join(to_json(record) + "\n" for record in kept))
    run.write_json(ORIGIN, [asdict(entry) for entry in entries])


def changed(origin: Origin) -> list[str]:
    """The changes as text, such as `optim.learning_rate: 0.0002 → 0.0001`."""
    return [f"{key}: {short(old)} → {short(new)}" for key, (old, new) in origin.changes.items()]


def short(value: Any) -> str:
    """A value for a message, at most 60 characters."""
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "…"
