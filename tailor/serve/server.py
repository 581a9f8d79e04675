"""Runs the HTTP server in this process, until a signal ends it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from tailor.errors import DataError
from tailor.serve.app import make_app
from tailor.serve.backend import Backend
from tailor.spec.serving import KEY_VARIABLE, Limits

DRAIN_SECONDS = 30
"""Time that unfinished requests have after a signal."""


def api_key() -> str | None:
    """The API key of this process's environment; None if there is none. DataError for one that no header can have."""
    key = os.environ.get(KEY_VARIABLE)
    if key is None or key == "":
        return None
    if not key.isascii() or not key.isprintable() or key != key.strip():
        raise DataError(
            f"{KEY_VARIABLE} has spaces around it or characters that no HTTP header can have",
            hint="use printable ASCII characters",
        )
    return key


def require_protection(host: str, key: str | None, *, open_to_all: bool) -> None:
    """DataError when other machines could use the server without a key, unless `open_to_all` allows it."""
    if key is not None or open_to_all or is_loopback(host):
        return
    raise DataError(
        f"--host {host} lets other machines use the server, and there is no API key",
        hint=f"set {KEY_VARIABLE}, or give --no-key if everybody who reaches the port may use it",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. DataError when the address cannot be used."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError, ValueError) as error:  # a port over 65535, a name that no host can have
        raise DataError(
            f"cannot listen at {host}:{port}: {getattr(error, 'strerror', None) or error}",
            hint="choose another --port, or an address of this machine",
        ) from None


def run(
    backend: Backend,
    limits: Limits,
    sock: socket.socket,
    key: str | None,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT. Then new connections are refused, and unfinished requests have `DRAIN_SECONDS`.

    A second signal ends them at once. started: called when the server accepts requests.
    """
    import uvicorn

    class Server(uvicorn.Server):
        loop: asyncio.AbstractEventLoop | None = None

        def handle_exit(self, sig: int, frame: Any) -> None:
            # uvicorn would raise the signal again after the drain, and would cancel requests with a traceback for each.
            wait = 0 if self.should_exit else DRAIN_SECONDS
            self.should_exit = True
            if self.loop is not None:
                self.loop.call_soon_threadsafe(self.loop.call_later, wait, self.abort)

        def abort(self) -> None:
            """Close all connections, which ends their requests as if their clients had left."""
            for connection in list(self.server_state.connections):
                connection.transport.abort()

        async def startup(self, sockets: Sequence[socket.socket] | None = None) -> None:
            self.loop = asyncio.get_running_loop()
            await super().startup(sockets)  # type: ignore[arg-type]
            started()

    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    Server(config(make_app(backend, limits, key))).run(sockets=[sock])


def config(app: Any) -> Any:
    """uvicorn's configuration."""
    import uvicorn

    from tailor.serve.connections import Connection

    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,  # the metrics count requests; a log would have the addresses of users
        server_header=False,
        timeout_keep_alive=30,
        lifespan="off",
    )
