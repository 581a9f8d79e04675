"""A web server whose files have an ETag or nothing that tells one version from another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Web:
    """What it serves, by path. etags, sizes: whether it tells versions and sizes."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etags: bool = False
    sizes: bool = True


@contextmanager
def web() -> Iterator[Web]:
    made = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            content = made.files.get(self.path)
            self.send_response(200 if content is not None else 404)
            if made.sizes:
                self.send_header("Content-Length", str(len(content or b"")))
            if made.etags and content is not None:
                self.send_header("ETag", f'"{hash(content)}"')
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(made.files.get(self.path, b""))

        def log_message(self, *_: object) -> None:
            pass

    with served(Handler) as made.url:
        yield made


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server on this machine, until the context ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
