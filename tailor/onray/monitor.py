"""The line between rank 0 and the driver: records one way, the wish to stop the other.

Between processes it is a mailbox actor, because Ray Train's own report waits for its controller's poll.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

Record = dict[str, Any]
Publish = Callable[[Record], None]
"""Takes each record of rank 0 to the driver's display."""

ASK_SECONDS = 0.5


class Line(Protocol):
    """The workers' end."""

    def post(self, record: Record) -> None:
        """Send a record to the driver."""
        ...

    def stopping(self) -> bool:
        """Whether the driver wants a checkpoint and the end."""
        ...

    def close(self) -> None:
        """Return when everything has arrived."""
        ...


class Direct:
    """The line inside one process."""

    def __init__(self, publish: Publish, stopping: Callable[[], bool]) -> None:
        self.post, self.stopping = publish, stopping

    def close(self) -> None:
        pass


class Mailbox:
    """Keeps what was posted until it is collected, in the order of arrival."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._stopping = False

    def post(self, record: Record) -> None:
        self._records.append(record)

    def collect(self) -> list[Record]:
        records, self._records = self._records, []
        return records

    def stop(self) -> None:
        self._stopping = True

    def stopping(self) -> bool:
        return self._stopping


class Remote:
    """The line to a mailbox. Nothing but `close` waits."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._question: Any = None
        self._asked = 0.0
        self._stopping = False

    def post(self, record: Record) -> None:
        self._mailbox.post.remote(record)

    def stopping(self) -> bool:
        import ray

        if self._question is not None:
            answered, _ = ray.wait([self._question], timeout=0)
            if answered:
                self._stopping, self._question = ray.get(self._question), None
        elif not self._stopping and time.monotonic() - self._asked > ASK_SECONDS:
            self._question, self._asked = self._mailbox.stopping.remote(), time.monotonic()
        return self._stopping

    def close(self) -> None:
        import ray

        with suppress(ray.exceptions.RayError):  # the driver is gone: nobody is told any more
            ray.get(self._mailbox.stopping.remote())


def start() -> Any:
    """The handle of a mailbox beside the driver. It takes no CPU from the workers."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    # Kept on this machine, so that collecting is quick.
    actor: Any = ray.remote(num_cpus=0, label_selector={"ray.io/node-id": here})(Mailbox)
    return actor.remote()
