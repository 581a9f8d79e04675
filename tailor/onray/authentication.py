"""The token of a Ray cluster: where it comes from, and whether the cluster accepts it."""

from __future__ import annotations

import os
from pathlib import Path

from tailor.errors import ScaleError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
HINT = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's token (run `ray get-auth-token` on the head node)"
CHECK_SECONDS = 10.0
_METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""A request to the head of a cluster whose message may be empty."""


def default_file() -> Path:
    """Where Ray stores a token."""
    return Path.home() / ".ray" / "auth_token"


def enable_token() -> None:
    """Turn token authentication on if there is a token, as `ray start` does.

    Ray's job client does not, nor does `ray.init` when it joins a cluster. Call it before Ray is imported, because Ray
    reads its environment once.
    """
    if os.environ.get(TOKEN) or os.environ.get(TOKEN_PATH) or default_file().is_file():
        os.environ.setdefault(MODE, "token")


def token() -> str | None:
    """The token that Ray sends, or None."""
    if os.environ.get(MODE, "").lower() != "token":
        return None
    if value := os.environ.get(TOKEN):
        return value.strip()
    file = Path(os.environ.get(TOKEN_PATH) or default_file())
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def refused(what: str, detail: str) -> ScaleError:
    """The error for a cluster or job server (`what`) that does not accept the token."""
    return ScaleError(f"{what} rejects the request: {detail.rstrip('.')}", hint=HINT)


def check_token(address: str) -> None:
    """ScaleError when the cluster at `address` (HOST:PORT of its head) rejects the token.

    Ray itself tries for half a minute, and then reports that it could not connect. A cluster that does not answer, or
    answers anything else, is left to Ray.
    """
    try:
        import grpc
    except ImportError:  # comes with ray[default]
        return
    value = token()
    metadata = [("authorization", f"Bearer {value}")] if value else []
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(_METHOD)(b"", metadata=metadata, timeout=CHECK_SECONDS)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                detail = "its token differs" if value else "it needs a token, and none is set"
                raise refused(f"the Ray cluster at {address}", detail) from None
