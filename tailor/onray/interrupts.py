"""Ctrl-C and SIGTERM during a run: the first asks for a checkpoint, the second ends the run at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a cluster's scheduler sends it. It ends a run in the same way as Ctrl-C."""


class Interrupts:
    """A context in which both signals are handled. Outside of the main thread they are left alone."""

    def __init__(self, told: Callable[[], None] = lambda: None) -> None:
        self.asked: int | None = None
        """The signal that asked the run to save a checkpoint and stop."""
        self.saves = False
        """Whether there is something to save: then the first signal only asks."""
        self._told = told
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take_back(self) -> None:
        """Install the handlers again: Ray's core takes SIGTERM over, to print a stack."""
        for number in self._before:
            signal.signal(number, self._handle)

    def error(self) -> KeyboardInterrupt:
        """What a run that stopped as asked ends with."""
        return Terminated("ended by SIGTERM") if self.asked == signal.SIGTERM else KeyboardInterrupt()

    def _handle(self, number: int, _: Any) -> None:
        first, self.asked = self.asked is None, number
        if first and self.saves:
            self._told()
            return
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        raise self.error()
