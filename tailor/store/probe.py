"""Try the rights of a store with a temporary object: write, read, list and delete it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from tailor.errors import StoreError
from tailor.store.removal import TEMPORARY
from tailor.store.store import Store

_CONTENT = b"tailor doctor\n"


@dataclass(frozen=True)
class Probe:
    """What a store allows.

    denied: (right, error) of each step that failed; after a failed `write` only `list` is tried. ahead: seconds by which
    the store's clock is ahead of this machine's, negative if it is behind; None if the store does not report times.
    left: name of an object that could not be deleted, or empty.
    """

    denied: tuple[tuple[str, StoreError], ...] = ()
    ahead: float | None = None
    left: str = ""


def probe(store: Store) -> Probe:
    """Write a temporary object into the store, read, list and delete it. Nothing else is changed."""
    name = f"{TEMPORARY}doctor-{uuid.uuid4().hex[:8]}"
    denied: list[tuple[str, StoreError]] = []

    def tried(right: str, action: Callable[[], bool]) -> bool:
        try:
            if not action():
                raise StoreError(f"{store.url_of(name)} was written, but is not found again")
        except StoreError as error:
            denied.append((right, error))
            return False
        return True

    def written() -> bool:
        store.write_bytes(name, _CONTENT)
        return True

    before = time.time()
    if not tried("write", written):
        tried("list", lambda: bool(store.names()) or True)
        return Probe(tuple(denied))
    after = time.time()
    ahead = _ahead(store, name, before, after)
    tried("read", lambda: store.read_bytes(name) == _CONTENT)
    tried("list", lambda: store.lists(name))

    def removed() -> bool:
        store.remove(name)
        return True

    left = "" if tried("delete", removed) else store.url_of(name)
    return Probe(tuple(denied), ahead, left)


def _ahead(store: Store, name: str, before: float, after: float) -> float | None:
    """Seconds from the time of writing, [before, after], to the store's time of the object, which may be cut to seconds."""
    try:
        modified = store.modified(name)
    except (StoreError, NotImplementedError):
        return None
    if modified < before - 1:
        return modified - before
    return max(0.0, modified - after)
