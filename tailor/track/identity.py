"""`trackers.json`: under which names other services know a run, so that a run that goes on goes on there too."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import yaml

from tailor.layout import RECIPE, TRACKERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailor.store import Store


def name_of(run: Store) -> str:
    """What a run is called where it has no other name: its folder's."""
    return run.url.rstrip("/").rpartition("/")[2]


def identity(
    run: Store, service: str, after_step: int, make: Callable[[], str] = lambda: secrets.token_hex(8)
) -> str:
    """The run's name at a service: what it was, when the run goes on from a step, else a new one."""
    known: dict[str, str] = run.read_json(TRACKERS) if run.exists(TRACKERS) else {}
    if not after_step or service not in known:
        known[service] = make()
        run.write_json(TRACKERS, known)
    return known[service]


def settings(run: Store) -> dict[str, Any]:
    """The resolved recipe as `section.key` → value. No recipe holds a secret."""
    values = yaml.safe_load(run.read_text(RECIPE)) if run.exists(RECIPE) else {}
    return dict(_flat("", values))


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        return [(prefix, value)] if prefix else []
    return [
        pair
        for key, inner in value.items()
        for pair in _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    ]
