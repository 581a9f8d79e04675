"""A stand-in of the Hugging Face hub's HTTP interface, as far as an upload uses it. It keeps what arrives."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.helpers.http_server import served

LARGE = (".safetensors", ".png", ".model")


@dataclass
class Repository:
    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """`tokens` maps a token to the owners whose repositories it may write."""

    tokens: dict[str, tuple[str, ...]]
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    readers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """`models/owner/name` or `datasets/owner/name` -> the tokens with access to it; none: it is not gated."""
    refused_cards: str = ""
    """Why metadata of cards are refused; empty accepts them."""


@contextmanager
def hub(**tokens: tuple[str, ...]) -> Iterator[Hub]:
    """A hub at `hub.url`, until the context ends."""
    state = Hub({name.replace("_", "-"): owners for name, owners in tokens.items()})

    class Handler(_Handler):
        hub = state

    with served(Handler) as state.url:
        yield state


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self._begin()
        if path == "/api/whoami-v2":
            return (
                self._send(200, {"name": "me", "type": "user"})
                if self._owners() is not None
                else self._wrong()
            )
        if path.endswith("/auth-check"):
            return self._checked(path.removeprefix("/api/").removesuffix("/auth-check"))
        if self._owners() is None:
            return self._wrong()
        kind, _, rest = path.removeprefix("/api/").partition("/")
        assert kind == "models", path
        if "/tree/" in rest:
            name, _, branch = rest.partition("/tree/")
            if name not in self.hub.repositories:
                return self._missing("RepoNotFound")
            files = self.hub.repositories[name].branches.get(branch)
            if files is None:
                return self._missing("RevisionNotFound")
            rows = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in files.items()
            ]
            return self._send(200, rows)
        if rest not in self.hub.repositories:
            return self._missing("RepoNotFound")
        return self._send(200, {"id": rest, "private": self.hub.repositories[rest].private, "sha": "0" * 40})

    def do_POST(self) -> None:
        path, body = self._begin(), self.rfile.read(int(self.headers.get("Content-Length") or 0))
        owners = self._owners()
        if path == "/api/validate-yaml" and self.hub.refused_cards:
            return self._send(400, {"errors": [{"message": self.hub.refused_cards}], "warnings": []})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if owners is None:
            return self._wrong()
        if path == "/api/repos/create":
            return self._create(json.loads(body), owners)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if path == "/verify":
            values = json.loads(body)
            assert len(self.hub.objects[values["oid"]]) == values["size"]
            return self._send(200, {})
        name, _, rest = path.removeprefix("/api/models/").partition("/")
        second, _, action = rest.partition("/")
        repository = self.hub.repositories[f"{name}/{second}"]
        if name not in owners:
            return self._forbidden()
        verb, _, branch = action.partition("/")
        if verb == "branch":
            repository.branches.setdefault(branch, dict(repository.branches["main"]))
            return self._send(200, {})
        if verb == "preupload":
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return self._send(200, {"files": files})
        assert verb == "commit", path
        self._commit(repository, branch, [json.loads(line) for line in body.splitlines()])
        url = f"{self.hub.url}/{name}/{second}/commit/{'0' * 40}"
        return self._send(200, {"commitUrl": url, "commitOid": "0" * 40})

    def do_PUT(self) -> None:
        path, body = self._begin(), self.rfile.read(int(self.headers.get("Content-Length") or 0))
        oid = path.removeprefix("/objects/")
        assert hashlib.sha256(body).hexdigest() == oid, "what arrives is what was announced"
        self.hub.objects[oid] = body
        self._send(200, {})

    def _create(self, values: dict[str, Any], owners: tuple[str, ...]) -> None:
        owner = values.get("organization") or "me"
        name = f"{owner}/{values['name']}"
        if owner not in owners:
            return self._forbidden()
        if name in self.hub.repositories:
            return self._send(
                409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
            )
        private = values["private"] if "private" in values else values["visibility"] == "private"
        self.hub.repositories[name] = Repository(private)
        return self._send(200, {"url": f"{self.hub.url}/{name}"})

    def _batch(self, values: dict[str, Any]) -> None:
        objects = [
            {
                **entry,
                "actions": {
                    "upload": {"href": f"{self.hub.url}/objects/{entry['oid']}"},
                    "verify": {"href": f"{self.hub.url}/verify"},
                },
            }
            for entry in values["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repository: Repository, branch: str, lines: list[dict[str, Any]]) -> None:
        files = repository.branches[branch]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                assert line["key"] == "deletedFile", line
                del files[value["path"]]

    def _checked(self, repository: str) -> None:
        readers = self.hub.readers.get(repository)
        if self._token() and self._owners() is None:
            return self._wrong()
        if readers is None:
            return self._missing("RepoNotFound")
        if readers and self._token() not in readers:
            return self._send(403 if self._token() else 401, {"error": "gated"}, code="GatedRepo")
        return self._send(200, {})

    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _begin(self) -> str:
        path = self.path.split("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        return path

    def _owners(self) -> tuple[str, ...] | None:
        return self.hub.tokens.get(self._token())

    def _wrong(self) -> None:
        self._send(401, {"error": "Invalid username or password."})

    def _forbidden(self) -> None:
        self._send(403, {"error": "You don't have the rights to create a model under this namespace"})

    def _missing(self, code: str) -> None:
        self._send(404, {"error": "not found"}, code=code)

    def _send(self, status: int, value: Any, *, code: str | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(body)
