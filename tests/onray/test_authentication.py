"""The token of a cluster: found where Ray stores it, and a refused one is not a cluster that does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from tailor.errors import ScaleError
from tailor.onray import authentication, cluster
from tailor.onray.authentication import check_token, enable_token, token
from tailor.spec.scale import Scale

SECRET = "a" * 64


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (authentication.MODE, authentication.TOKEN, authentication.TOKEN_PATH, "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")  # so that what the code sets is removed after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def store(home: Path, value: str = SECRET) -> Path:
    file = home / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text(f"{value}\n")
    return file


def test_the_token_comes_from_where_ray_stores_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enable_token()
    assert token() is None, "the control: there is none"
    file = store(home)
    enable_token()
    assert token() == SECRET
    monkeypatch.setenv(authentication.TOKEN, "b" * 64)
    assert token() == "b" * 64
    monkeypatch.delenv(authentication.TOKEN)
    file.rename(home / "token")
    monkeypatch.setenv(authentication.TOKEN_PATH, str(home / "token"))
    assert token() == SECRET
    monkeypatch.setenv(authentication.MODE, "disabled")
    enable_token()
    assert token() is None


@pytest.mark.parametrize("joins", [True, False])
def test_a_run_that_joins_a_cluster_uses_the_token(
    joins: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.train  # noqa: F401

    store(home)
    for name in (*cluster.RAY_ENVIRONMENT, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(cluster, "sys", SimpleNamespace(modules={}))  # as before the import of Ray
    if joins:
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    cluster.import_ray(Scale())
    assert (token() == SECRET) is joins, "a Ray of its own gets a token of its own"


@contextmanager
def head(accepted: str | None) -> Iterator[str]:
    """The address of a server that answers as the head of a cluster with this token; without one, it takes no token."""

    def answer(request: bytes, context: Any) -> bytes:
        sent = dict(context.invocation_metadata()).get("authorization")
        if accepted is not None and sent != f"Bearer {accepted}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    methods = {"GetClusterId": grpc.unary_unary_rpc_method_handler(answer)}
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", methods),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


@pytest.mark.parametrize(
    ("accepted", "stored", "reason"),
    [
        (SECRET, SECRET, None),
        (None, SECRET, None),
        (None, None, None),
        (SECRET, "c" * 64, "its token differs"),
        (SECRET, None, "it needs a token, and none is set"),
    ],
)
def test_a_refused_token_is_named(
    accepted: str | None, stored: str | None, reason: str | None, home: Path
) -> None:
    if stored is not None:
        store(home, stored)
    enable_token()
    with head(accepted) as address:
        if reason is None:
            check_token(address)
        else:
            with pytest.raises(ScaleError) as caught:
                cluster.connect(Scale(address=address))
            assert caught.value.message == f"the Ray cluster at {address} rejects the request: {reason}"
            assert caught.value.hint == authentication.HINT
