"""The channel between rank 0 and the driver: records to the driver, the request to stop to the workers.

Between processes it is a mailbox actor, because `ray.train.report` is delayed until the controller's next poll.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

Record = dict[str, Any]
Publish = Callable[[Record], None]
"""Passes a record of rank 0 to the driver's display."""

STOP_POLL_SECONDS = 0.5
"""How often a worker asks the mailbox whether it should stop."""


class Channel(Protocol):
    """The workers' side of the channel."""

    def post(self, record: Record) -> None:
        """Send a record to the driver."""
        ...

    def place(self, rank: int) -> None:
        """Report the node of this worker."""
        ...

    def stopping(self) -> bool:
        """Whether the driver requested a checkpoint and the end of the run."""
        ...

    def close(self) -> None:
        """Wait until all records have arrived."""
        ...


class LocalChannel:
    """The channel inside one process: it calls the driver's functions directly."""

    def __init__(self, publish: Publish, stopping: Callable[[], bool]) -> None:
        self.post, self.stopping = publish, stopping

    def place(self, rank: int) -> None:
        pass

    def close(self) -> None:
        pass


class Mailbox:
    """Actor that stores the records until the driver collects them, the workers' nodes, and the request to stop."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._placed: dict[int, str] = {}
        self._stopping = False

    def post(self, record: Record) -> None:
        self._records.append(record)

    def collect(self) -> list[Record]:
        records, self._records = self._records, []
        return records

    def place(self, rank: int, node: str) -> None:
        self._placed[rank] = node

    def placed(self) -> dict[int, str]:
        """rank -> ID of its node."""
        return self._placed

    def stop(self) -> None:
        self._stopping = True

    def stopping(self) -> bool:
        return self._stopping


class RemoteChannel:
    """The channel through a mailbox actor. Only `close` blocks."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._pending: Any = None
        self._last_poll = 0.0
        self._stopping = False

    def post(self, record: Record) -> None:
        self._mailbox.post.remote(record)

    def place(self, rank: int) -> None:
        import ray

        self._mailbox.place.remote(rank, ray.get_runtime_context().get_node_id())

    def stopping(self) -> bool:
        import ray

        if self._pending is not None:
            ready, _ = ray.wait([self._pending], timeout=0)
            if ready:
                self._stopping, self._pending = ray.get(self._pending), None
        elif not self._stopping and time.monotonic() - self._last_poll > STOP_POLL_SECONDS:
            self._pending, self._last_poll = self._mailbox.stopping.remote(), time.monotonic()
        return self._stopping

    def close(self) -> None:
        import ray

        with suppress(ray.exceptions.RayError):  # the mailbox died with the driver
            # An actor handles the calls of one caller in order, so this answer comes after every posted record.
            ray.get(self._mailbox.stopping.remote())


def start() -> Any:
    """Start a mailbox actor and return its handle. It reserves no CPU."""
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    # On the driver's node, so that collecting is fast.
    actor: Any = ray.remote(num_cpus=0, label_selector={"ray.io/node-id": node_id})(Mailbox)
    return actor.remote()
