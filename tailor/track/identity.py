"""`trackers.json`: the run's ids at tracking services, so that a resumed run continues the same run there."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import yaml

from tailor.layout import RECIPE, TRACKERS
from tailor.store import JsonFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailor.store import Store


TRACKERS_FILE = JsonFile(
    dict[str, str], "remove {file}: the resumed run then starts a new run at the services"
)


def name_of(run: Store) -> str:
    """The default name of a run at a service: the name of its folder."""
    return run.url.rstrip("/").rpartition("/")[2]


def identity(
    run: Store, service: str, after_step: int, make: Callable[[], str] = lambda: secrets.token_hex(8)
) -> str:
    """The run's id at a service: the stored one when the run resumes, else a new one from `make`."""
    known: dict[str, Any] = TRACKERS_FILE.read(run, TRACKERS) if run.exists(TRACKERS) else {}
    if not after_step or service not in known:
        known[service] = make()
        TRACKERS_FILE.write(run, TRACKERS, known)
    return str(known[service])


def settings(run: Store) -> dict[str, Any]:
    """The resolved recipe as `section.key` -> value. It is safe to send, because recipes contain no secrets."""
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
