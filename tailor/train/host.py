"""Where a worker runs: what the loop needs of it."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Host(Protocol):
    """One worker. With more than one, torch.distributed is initialized before the loop starts."""

    rank: int
    world: int
    device: torch.device

    def report(self, record: dict[str, Any]) -> None:
        """Take one metric record. Called on rank 0."""
        ...

    def flush(self) -> None:
        """Return when every record so far is in the run's log for good. Called on rank 0, from another thread."""
        ...

    def resume(self) -> str | None:
        """URL of the committed checkpoint to go on from, if there is one."""
        ...

    def stopping(self) -> bool:
        """Whether this worker was asked to save a checkpoint and stop."""
        ...
