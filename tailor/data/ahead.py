"""Fetch the shards of the coming window in threads, while the present one is trained on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from tailor.errors import StoreError

THREADS = 8
"""Shards that a worker fetches at the same time."""


class Ahead:
    """fetch: copies a shard to this machine, unless it is there."""

    def __init__(self, fetch: Callable[[int], object]) -> None:
        self._fetch = fetch

    def now(self, shards: Iterable[int]) -> None:
        """Fetch these shards, and wait for them. Raises the error of the first that cannot be fetched."""
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._fetch, shards))

    def later(self, shards: Iterable[int]) -> threading.Thread:
        """Fetch these shards in the background. What cannot be fetched now raises its error when it is read."""

        def work() -> None:
            for shard in shards:
                with contextlib.suppress(StoreError):
                    self._fetch(shard)

        thread = threading.Thread(target=work, name="fetch shards", daemon=True)
        thread.start()
        return thread
