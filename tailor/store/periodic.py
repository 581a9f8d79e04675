"""Keeps something in a store up to date from a thread, so that nobody waits for a slow store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from tailor.errors import StoreError


class Periodic:
    """Calls `action` every `seconds` until closed. A store that fails once is tried again the next time."""

    def __init__(self, action: Callable[[], None], seconds: float) -> None:
        self._action, self._seconds = action, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="periodic", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Returns when the last call has ended."""
        self._ended.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._ended.wait(self._seconds):
            with suppress(StoreError):
                self._action()
