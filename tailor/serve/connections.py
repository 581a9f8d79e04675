"""Connections whose request head is late or too large are closed.

uvicorn waits for a head without a limit, and with httptools also reads one of any size.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_SECONDS = 30.0
"""Time for the head of a request (request line and headers), from the connection or from the head's first bytes."""

MAX_HEAD_BYTES = 1 << 18


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol, which is the one of httptools or of h11, with the two limits."""

    head_seconds = HEAD_SECONDS
    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_busy:
            self._head_bytes = 0
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
            return
        self._head_bytes += len(data)
        self._expect_head()
        if self._head_bytes > MAX_HEAD_BYTES:
            self._close_unless_busy()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    @property
    def _is_busy(self) -> bool:
        """Whether a request is being read or answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.head_seconds, self._close_unless_busy)

    def _close_unless_busy(self) -> None:
        self._deadline = None
        if not self._is_busy and not self.transport.is_closing():
            self.transport.close()
