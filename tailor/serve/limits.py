"""What is checked before a request is read: the API key, and the size and the time of the body."""

from __future__ import annotations

import asyncio
import hmac
import json
from typing import Any

from starlette.requests import Request

from tailor.serve.errors import ApiError, bad_request
from tailor.spec.serving import Limits


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
    if declared > limits.body_bytes and "expect" in request.headers:
        raise too_large  # the client waits before it sends the body
    body, is_too_large = bytearray(), declared > limits.body_bytes

    async def read() -> None:
        nonlocal is_too_large
        # Read to the end also what is too large: a client that is still sending could lose the answer with the connection.
        async for part in request.stream():
            is_too_large = is_too_large or len(body) + len(part) > limits.body_bytes
            if not is_too_large:
                body.extend(part)

    try:
        await asyncio.wait_for(read(), limits.body_seconds)
    except asyncio.TimeoutError:
        if not is_too_large:
            raise ApiError(
                408, f"the request did not arrive within {limits.body_seconds:g} s", code="request_timeout"
            ) from None
    if is_too_large:
        raise too_large
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
