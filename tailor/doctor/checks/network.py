"""Ports and names that the workers of a run need to find each other."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from tailor.doctor.finding import Context, Finding


def check(context: Context) -> Iterator[Finding]:
    try:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            with socket.create_connection(server.getsockname(), timeout=5):
                pass
    except OSError as error:
        yield Finding(
            "failed",
            f"a process cannot connect to another one on this machine: {error}",
            "allow connections on 127.0.0.1",
        )
    else:
        yield Finding("ok", "ports can be opened on 127.0.0.1")
    if context.recipe is None or context.recipe.scale.max_workers == 1:
        return
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        yield Finding(
            "warning",
            f"the name of this machine, {name}, does not resolve: {error}",
            "add it to /etc/hosts: workers use it",
        )
