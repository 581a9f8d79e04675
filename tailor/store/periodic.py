"""Calls a function periodically in a background thread, so that training does not wait for a slow store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from tailor.errors import StoreError


class Periodic:
    """Calls `action` every `seconds` until closed. After a StoreError the next call simply tries again.

    share: maximum fraction of the time that `action` may take. A slow action is called less often.
    """

    def __init__(self, action: Callable[[], None], seconds: float, *, share: float = 1.0) -> None:
        self._action, self._seconds, self._share = action, seconds, share
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="periodic", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait for the last call to end."""
        self._ended.set()
        self._thread.join()

    def _work(self) -> None:
        pause = self._seconds
        while not self._ended.wait(pause):
            began = time.monotonic()
            with suppress(StoreError):
                self._action()
            pause = max(self._seconds, (time.monotonic() - began) / self._share)
