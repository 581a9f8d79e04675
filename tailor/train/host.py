"""The interface between the training loop and the worker process that runs it."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Host(Protocol):
    """One worker. With more than one, torch.distributed is initialized before the loop starts."""

    rank: int
    world: int
    device: torch.device

    def report(self, record: dict[str, Any]) -> None:
        """Log one metric record. Called on rank 0."""
        ...

    def flush(self) -> None:
        """Return once all records so far are stored in the run's log. Called on rank 0, from another thread. Raises if another
        process owns the run by now."""
        ...

    def resume(self) -> str | None:
        """URL of the committed checkpoint to resume from; None to start from the beginning."""
        ...

    def stopping(self) -> bool:
        """Whether this worker was asked to save a checkpoint and stop."""
        ...
