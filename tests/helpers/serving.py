"""A server of `tailor serve` in a thread of the test's process, and runs to serve."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from tailor.artifacts.shared_base import load_together
from tailor.serve.app import make_app
from tailor.serve.backend import Backend, LocalBackend
from tailor.serve.server import config, listen
from tailor.spec.serving import Limits
from tests.helpers.adapters import random_adapter
from tests.helpers.models import tiny_llama


@dataclass
class Served:
    """A running server. url: with /v1."""

    url: str
    backend: Backend

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/{path}", json=body, timeout=60, **options)

    def chat(self, text: str, **fields: Any) -> httpx.Response:
        body = {"model": "red", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}
        return self.post("chat/completions", body)


@contextmanager
def http(backend: Backend, limits: Limits | None = None, key: str | None = None) -> Iterator[Served]:
    """Serve a backend on a free port until the context ends."""
    sock = listen("127.0.0.1", 0)
    app = make_app(backend, limits or Limits(), key)
    server = uvicorn.Server(config(app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{sock.getsockname()[1]}/v1", backend)
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def local(runs: Mapping[str, str], limits: Limits | None = None, key: str | None = None) -> Iterator[Served]:
    """Serve runs from this process."""
    limits = limits or Limits()
    backend = LocalBackend(load_together(runs), max_waiting=limits.waiting)
    try:
        with http(backend, limits, key) as served:
            yield served
    finally:
        backend.close()


def two_adapters(folder: Path, dtype: str = "float32", positions: int = 512) -> dict[str, str]:
    """A tiny base with two random adapters, by name."""
    base = tiny_llama(folder / "base", max_position_embeddings=positions)
    names = ("red", "blue")
    return {
        name: str(random_adapter(folder / name, base, seed=at + 1, dtype=dtype, size=0.3))
        for at, name in enumerate(names)
    }
