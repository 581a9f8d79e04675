"""Connections that do not behave, with both of uvicorn's parsers: each is closed or gets an error in OpenAI's form."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tailor.serve import connections
from tailor.serve.calls import Call, Load, Piece
from tailor.spec.serving import Limits
from tests.helpers import serving
from tests.helpers.serving import Served


class Pieces:
    """A backend without a model. An answer has 200 long pieces, and no end."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    async def models(self) -> dict[str, list[str]]:
        return {"red": ["completions"]}

    async def answer(self, call: Call) -> AsyncIterator[Piece]:
        try:
            for _ in range(200):
                yield Piece("x" * 50_000)
            await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def load(self) -> Load:
        return Load(0, 0, 0)


@pytest.fixture(params=[HttpToolsProtocol, H11Protocol])
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server with short limits."""
    times = {"head_seconds": 0.2, "read_seconds": 0.2}
    protocol = type("Connection", (connections.Limited, request.param), times)
    monkeypatch.setattr(connections, "Connection", protocol)
    with serving.http(Pieces(), Limits(body_bytes=1000, body_seconds=5)) as served:  # type: ignore[arg-type]
        yield served


def connect(served: Served) -> socket.socket:
    host, port = served.url.removeprefix("http://").removesuffix("/v1").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.settimeout(60)
    return connection


def read(connection: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    found = b""
    while part := connection.recv(1 << 16):
        found += part
    return found


def error_in(reply: bytes) -> dict[str, Any]:
    head, _, content = reply.partition(b"\r\n\r\n")
    assert b"application/json" in head
    error = json.loads(content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\nno header\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ],
)
def test_what_is_not_http(quick: Served, content: bytes) -> None:
    with connect(quick) as connection:
        connection.sendall(content)
        reply = read(connection)
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert error_in(reply)["message"] == "the request is not valid HTTP"


@pytest.mark.parametrize("declared", [True, False])
def test_the_error_of_a_large_request_arrives(quick: Served, declared: bool) -> None:
    """Also when the client reads nothing before it has sent everything, and has the connection closed after the answer."""
    body = b" " * (8 << 20)
    length = b"Content-Length: %d" % len(body) if declared else b"Transfer-Encoding: chunked"
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + length + b"\r\n\r\n"
    with connect(quick) as connection:
        chunk = b"" if declared else b"%x\r\n" % len(body)
        connection.sendall(head + chunk + body + (b"" if declared else b"\r\n0\r\n\r\n"))
        reply = read(connection)
    assert b" 413 " in reply
    assert error_in(reply)["code"] == "request_too_large"


def test_connections_without_a_request_are_closed(quick: Served) -> None:
    half, path = b"GET /v1/models HTTP/1.1\r\nHost", "/v1/models"
    for parts in ([], [half], [half + b": x\r\n\r\n", half]):  # silent, half a head, and half a second one
        with connect(quick) as connection:
            for part in parts:
                connection.sendall(part)
                if part != half:
                    assert b" 200 " in connection.recv(1 << 16), path
            read(connection)


@pytest.mark.parametrize("before", [b"", b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_request_head_without_an_end(quick: Served, before: bytes) -> None:
    with connect(quick) as connection:
        connection.sendall(before + b"GET /v1/models HTTP/1.1\r\nX: ")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(b"x" * 100_000_000)


def test_a_client_that_does_not_read(quick: Served) -> None:
    """10 MB are more than the system's buffers hold."""
    backend: Any = quick.backend
    body = json.dumps({"model": "red", "prompt": "Hi", "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connect(quick) as connection:
        connection.sendall(head + body)
        assert backend.closed.wait(60)
