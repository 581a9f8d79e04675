"""Keeps something in a store up to date from a thread, so that nobody waits for a slow store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from tailor.errors import StoreError


class Periodic:
    """Calls `action` every `seconds` until closed. A store that fails once is tried again the next time.

    share: the most of its time that the thread may spend in `action`; a slow one is called less often.
    """

    def __init__(self, action: Callable[[], None], seconds: float, *, share: float = 1.0) -> None:
        self._action, self._seconds, self._share = action, seconds, share
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="periodic", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Returns when the last call has ended."""
        self._ended.set()
        self._thread.join()

    def _work(self) -> None:
        pause = self._seconds
        while not self._ended.wait(pause):
            began = time.monotonic()
            with suppress(StoreError):
                self._action()
            pause = max(self._seconds, (time.monotonic() - began) / self._share)
