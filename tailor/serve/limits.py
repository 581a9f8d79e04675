"""What is checked before a request is read: the API key, and the size and the time of the body."""

from __future__ import annotations

import asyncio
import hmac
import json
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from tailor.serve.errors import ApiError, bad_request

KEY_VARIABLE = "TAILOR_API_KEY"


@dataclass(frozen=True)
class Limits:
    """Limits of each request. The defaults are those of `tailor serve`.

    body_bytes, body_seconds: of the request. seconds: from the request to the end of its response. max_tokens: of an answer.
    waiting: requests that may wait for a row of a batch.
    """

    body_bytes: int = 4 << 20
    body_seconds: float = 30.0
    seconds: float = 600.0
    max_tokens: int = 4096
    waiting: int = 256


def check_key(request: Request, key: str | None) -> None:
    """ApiError unless the request has the key. The time of the comparison does not depend on the key."""
    if key is None:
        return
    given = request.headers.get("authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
        raise ApiError(
            401,
            "the API key is missing or wrong; send it as `Authorization: Bearer KEY`",
            type="authentication_error",
            code="invalid_api_key",
        )


async def read_json(request: Request, limits: Limits) -> dict[str, Any]:
    """The JSON object in the body of a request. ApiError when it is none, too large, or arrives too slowly."""
    too_large = ApiError(
        413, f"the request is larger than {limits.body_bytes} bytes", code="request_too_large"
    )
    try:
        declared = int(request.headers.get("content-length", 0))
    except ValueError:
        raise bad_request("the header content-length is not a number") from None
    if declared > limits.body_bytes:
        raise too_large

    async def read() -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > limits.body_bytes:
                raise too_large
        return bytes(body)

    try:
        body = await asyncio.wait_for(read(), limits.body_seconds)
    except asyncio.TimeoutError:
        raise ApiError(
            408, f"the request did not arrive within {limits.body_seconds:g} s", code="request_timeout"
        ) from None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise bad_request("the request is not valid JSON") from None
    if not isinstance(value, dict):
        raise bad_request("the request is not a JSON object")
    for name, field in value.items():
        _require_unicode(name, field)
    return value


def _require_unicode(name: str, field: Any) -> None:
    """ApiError for half of a surrogate pair, which JSON's escapes allow, and no tokenizer and no response."""
    try:
        json.dumps([name, field], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise bad_request(f"{name}: has half of a surrogate pair, which is no character", name) from None
    except RecursionError:
        raise bad_request(f"{name}: is nested too deeply", name) from None
