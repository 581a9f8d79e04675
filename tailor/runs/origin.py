"""`origin.json`: where a run's first steps come from, when its recipe was changed on purpose on the way.

A list, oldest first; each entry says from which checkpoint of which run the new recipe went on, and what it changed.
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
    """One change of recipe."""

    run: str
    """URL of the run whose checkpoint was taken."""
    step: int
    checkpoint: str
    """URL of that checkpoint."""
    changes: dict[str, list[Any]]
    """Key -> old and new value."""
    first_step: int
    """The step at which the present data begin: 0, or that of the last change of data or batches."""


def origins(run: Store) -> list[Origin]:
    """Every change of a run's recipe, oldest first."""
    return [Origin(**entry) for entry in run.read_json(ORIGIN)] if run.exists(ORIGIN) else []


def begin(run: Store, source: Store, origin: Origin) -> None:
    """Let `run` go on from another run's checkpoint, with that run's history and its records up to there."""
    entries = [entry for entry in origins(source) if entry != origin] + [origin]
    if run.url != source.url:
        kept = before(read(source), origin.step)
        run.write_text(METRICS, "".join(to_json(record) + "\n" for record in kept))
    run.write_json(ORIGIN, [asdict(entry) for entry in entries])


def changed(origin: Origin) -> list[str]:
    """The changes in words."""
    return [f"{key}: {short(old)} → {short(new)}" for key, (old, new) in origin.changes.items()]


def short(value: Any) -> str:
    """A value in a message."""
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "…"
