"""Imports of large packages without garbage collection."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

MANY = 10_000
"""New objects that are worth it. Without an import there are fewer, and the garbage among them is to be found soon."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause garbage collection while packages are imported.

    torch and transformers make 420,000 objects that stay, and Python's collector looks through them again and again: a
    quarter of the time of their imports.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if gc.get_count()[0] > MANY and not gc.get_freeze_count():  # what the caller froze stays frozen
            # Into the oldest generation, without looking through them: the next collection would take 0.3 s.
            gc.freeze()
            gc.unfreeze()
        gc.enable()
