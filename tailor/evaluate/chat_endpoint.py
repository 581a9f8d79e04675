"""A client of OpenAI-compatible servers, with retries in a bounded time."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tailor.encode.replies.reply import Reply, ToolCall
from tailor.redaction import redacted

MAX_BYTES = 4 << 20
"""A longer reply is not read."""
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""HTTP statuses that may be another one later."""
WAIT, MAX_WAIT = 0.5, 20.0
"""Seconds before the first retry, which double with each further one, and their limit."""


class EndpointError(Exception):
    """A request without a usable reply. Its text is the reason, without secrets."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key is only for the server that the user names, so no redirect is followed."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True)
class ChatEndpoint:
    """A server and a model on it. timeout: seconds for one reply with all retries. key: None sends none."""

    base_url: str
    model: str
    timeout: float
    key: str | None = None
    temperature: float | None = 0.0

    def request(self, messages: list[dict[str, str]]) -> str:
        """The body of a request as JSON text. Equal requests have equal bodies."""
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        return json.dumps(body, ensure_ascii=False, sort_keys=True)

    def ask(self, request: str) -> str:
        """The text of the reply. EndpointError when there is none in time."""
        return _text_of(self.post("chat/completions", request))

    def post(self, path: str, request: str | None) -> bytes:
        """The reply to a request at a path below the base URL (GET without one). EndpointError when there is none in time."""
        deadline, wait = time.monotonic() + self.timeout, WAIT
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise EndpointError(f"no reply within {self.timeout:g} s")
            try:
                return self._send(path, request, left)
            except _Later as error:
                pause = min(max(wait, error.after), MAX_WAIT)
                wait *= 2
                if time.monotonic() + pause >= deadline:
                    raise EndpointError(f"{error} (retried for {self.timeout:g} s)") from None
                time.sleep(pause)

    def stream(self, request: str) -> Iterator[Reply]:
        """The pieces of the reply to a chat request with `stream`, as they arrive. EndpointError when it does not end well."""
        try:
            with self._open("chat/completions", request, self.timeout) as reply:
                for line in reply:
                    if line.startswith(b"data: ") and line.strip() == b"data: [DONE]":
                        return
                    if line.startswith(b"data: "):
                        yield _piece_of(line[len(b"data: ") :])
        except _Later as error:
            raise EndpointError(str(error)) from None
        except (OSError, http.client.HTTPException) as error:
            raise EndpointError(_short(str(error) or type(error).__name__)) from None
        raise EndpointError("the connection ended before the answer did")

    def models(self, ability: str) -> dict[str, bool]:
        """The names of the models on the server, and whether each has an ability: all, if the server does not say what it can.

        ability: `chat` or `completions`. EndpointError when the server does not list its models.
        """
        content = self.post("models", None)
        try:
            cards = json.loads(content)["data"]
            return {str(card["id"]): ability in card.get("supports", [ability]) for card in cards}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise EndpointError(f"a reply that is no list of models: {_short(content)}") from None

    def _send(self, path: str, request: str | None, seconds: float) -> bytes:
        try:
            with self._open(path, request, seconds) as reply:
                return _read(reply, time.monotonic() + seconds)
        except (OSError, http.client.HTTPException) as error:  # reset, timed out, cut off
            raise _Later(_short(str(error) or type(error).__name__)) from None

    def _open(self, path: str, request: str | None, seconds: float) -> Any:
        """The reply, open for reading. _Later and EndpointError for a server that refuses."""
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        body = None if request is None else request.encode()
        made = urllib.request.Request(f"{self.base_url.rstrip('/')}/{path}", body, headers)
        try:
            return urllib.request.build_opener(_NoRedirect).open(made, timeout=seconds)
        except urllib.error.HTTPError as error:
            # Some servers repeat the key that they reject.
            said = error.read(2000).decode(errors="replace").replace(self.key or "\0", "***")
            reason = f"HTTP {error.code} {error.reason}: {_short(said)}"
            if error.code in RETRIED:
                raise _Later(reason, _seconds(error.headers.get("Retry-After"))) from None
            raise EndpointError(reason) from None
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, cut off
            raise _Later(_short(str(getattr(error, "reason", error)) or type(error).__name__)) from None
        except ValueError as error:  # a key or URL that no header can have
            raise EndpointError(type(error).__name__) from None


def _read(reply: Any, deadline: float) -> bytes:
    """The content of a reply. EndpointError when it is too long, or arrives too slowly."""
    content = b""
    while chunk := reply.read1(1 << 16):
        content += chunk
        if len(content) > MAX_BYTES:
            raise EndpointError(f"a reply of more than {MAX_BYTES >> 20} MiB")
        if time.monotonic() > deadline:
            raise EndpointError("a reply that does not end in time")
    return content


class _Later(Exception):
    """A failure that may be over later. after: seconds that the server asks to wait."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


def _text_of(content: bytes) -> str:
    try:
        text = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise EndpointError(f"a reply that is no chat completion: {_short(content)}") from None
    if not isinstance(text, str):
        raise EndpointError("a chat completion without text")
    return text


def _piece_of(line: bytes) -> Reply:
    """What a chunk of a stream has of the reply. vLLM calls the reasoning `reasoning`."""
    try:
        chunk = json.loads(line)
        if "error" in chunk:
            raise EndpointError(_short(str(chunk["error"]["message"])))
        delta = chunk["choices"][0]["delta"] if chunk["choices"] else {}
        parts = delta.get("content"), delta.get("reasoning_content") or delta.get("reasoning")
        functions = [call["function"] for call in delta.get("tool_calls") or ()]
        calls = tuple(
            ToolCall(one["name"], one.get("arguments") or "") for one in functions if one.get("name")
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise EndpointError(f"a chunk that is no chat completion: {_short(line)}") from None
    return Reply(*(part if isinstance(part, str) else "" for part in parts), calls)


def _seconds(value: str | None) -> float:
    """The seconds of a Retry-After header; 0 for a date or nonsense."""
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        return 0.0


def _short(text: bytes | str) -> str:
    plain = text.decode(errors="replace") if isinstance(text, bytes) else text
    return redacted(" ".join(plain.split()))[:200]
