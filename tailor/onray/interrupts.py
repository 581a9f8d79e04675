"""Handles Ctrl-C and SIGTERM during a run: the first signal requests a checkpoint, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


class Terminated(KeyboardInterrupt):
    """Raised for SIGTERM, which cluster schedulers send. It ends a run in the same way as Ctrl-C."""


class Interrupts:
    """Context manager that installs handlers for SIGINT and SIGTERM. Outside the main thread it does nothing."""

    def __init__(self, on_request: Callable[[], None] = lambda: None) -> None:
        """on_request: called when the first signal requests a checkpoint."""
        self.requested: int | None = None
        """The signal that requested a checkpoint and the end of the run."""
        self.can_save = False
        """Whether there are steps to save. If not, the first signal stops at once."""
        self._on_request = on_request
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def reinstall(self) -> None:
        """Install the handlers again, because Ray's core installs its own for SIGTERM, which prints a stack trace."""
        for number in self._previous:
            signal.signal(number, self._handle)

    def error(self) -> KeyboardInterrupt:
        """The exception to raise after the run has stopped as requested."""
        return Terminated("stopped by SIGTERM") if self.requested == signal.SIGTERM else KeyboardInterrupt()

    def _handle(self, number: int, _: Any) -> None:
        first, self.requested = self.requested is None, number
        if first and self.can_save:
            self._on_request()
            return
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        raise self.error()
