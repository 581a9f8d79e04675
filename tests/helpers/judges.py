"""A stand-in for an OpenAI-compatible server with a judge, on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.helpers.http_server import served

_ANSWERS = re.compile(r"\[Answer A\]\n(.*)\n\[End of answer A\]\n\n\[Answer B\]\n(.*)\n\[End", re.DOTALL)


def prefers_longer(a: str, b: str) -> str:
    return "[[C]]" if len(a) == len(b) else "[[A]]" if len(a) > len(b) else "[[B]]"


@dataclass
class JudgeServer:
    """What the server does, and the requests that it got."""

    url: str = ""
    reply: Callable[[str, str], str | tuple[int, dict[str, str]]] = prefers_longer
    """(answer A, answer B) -> the text of the reply, or an HTTP status with headers."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


class Kept:
    """Replies in memory."""

    def __init__(self) -> None:
        self.replies: dict[str, str] = {}

    def reply(self, request: str) -> str | None:
        return self.replies.get(request)

    def keep(self, request: str, reply: str) -> None:
        self.replies[request] = reply


@contextmanager
def judge_server() -> Iterator[JudgeServer]:
    made = JudgeServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.requests.append(body)
            made.keys.append(self.headers["Authorization"])
            pair = _ANSWERS.search(body["messages"][-1]["content"])
            assert pair is not None
            reply = made.reply(pair[1], pair[2])
            if isinstance(reply, tuple):
                self.send_response(reply[0])
                for name, value in reply[1].items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(f"no: {self.headers['Authorization']}".encode())
                return
            content = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with served(Handler) as url:
        made.url = f"{url}/v1"
        yield made
