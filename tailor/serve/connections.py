"""Connections with limits, and with errors in OpenAI's form for requests that are not HTTP.

uvicorn waits for a request head and for a client that reads without a limit, with httptools also reads a head of any size,
and answers what is not HTTP with plain text.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from tailor.serve.errors import bad_request

HEAD_SECONDS = 30.0
"""Time for the head of a request (request line and headers), from the connection or from the head's first bytes."""

MAX_HEAD_BYTES = 1 << 18

READ_SECONDS = 60.0
"""Time in which a client must read some of a response, once the buffers are full."""


_Protocol: Any = object
"""One of uvicorn's classes for HTTP/1.1, which comes after `Limited` in the order of the bases."""


class Limited(_Protocol):  # type: ignore[misc]
    """A protocol with the limits."""

    head_seconds, read_seconds = HEAD_SECONDS, READ_SECONDS
    _head_deadline: asyncio.TimerHandle | None = None
    _read_deadline: asyncio.TimerHandle | None = None
    _is_in_head = False
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._is_in_head else 0
        if self._head_bytes > MAX_HEAD_BYTES:
            self.transport.close()
        elif self._is_busy:
            _stop(self._head_deadline)
            self._head_deadline = None
        else:
            self._expect_head()

    def on_message_begin(self) -> None:
        """Called with httptools; h11 has a limit of its own."""
        self._is_in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_deadline = self.loop.call_later(self.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        _stop(self._read_deadline)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        _stop(self._head_deadline)
        _stop(self._read_deadline)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        content = json.dumps(bad_request("the request is not valid HTTP").body).encode()
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + content)
        self.transport.close()

    @property
    def _is_busy(self) -> bool:
        """Whether a request is being read or answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_head(self) -> None:
        if self._head_deadline is None:
            self._head_deadline = self.loop.call_later(self.head_seconds, self._close_unless_busy)

    def _close_unless_busy(self) -> None:
        self._head_deadline = None
        if not self._is_busy and not self.transport.is_closing():
            self.transport.close()


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class Connection(Limited, AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol, which is the one of httptools or of h11, with the limits."""
