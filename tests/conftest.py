"""Options of the whole suite."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.helpers import s3 as protocol


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-fixtures", action="store_true", help="Write the expected texts anew.")


def pytest_configure() -> None:
    """One thread of arithmetic: those of several processes on the same cores mostly wait for each other.

    Uploads go by LFS, which the stand-in of the hub knows: hf_xet is a compiled client of another service.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_DISABLE_XET"] = "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `gpu` run only where there is one, those marked `soak` only when SOAK says how long.

    Files with long tests come first, so that no process is left with one when the others have ended.
    """
    absent = [
        marker
        for marker, there in (("gpu", shutil.which("nvidia-smi")), ("soak", os.environ.get("SOAK")))
        if not there
    ]
    left_out = [item for item in items if any(item.get_closest_marker(marker) for marker in absent)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    long = {
        marker: {item.path for item in items if item.get_closest_marker(marker)} for marker in ("ray", "slow")
    }
    items.sort(key=lambda item: (item.path not in long["ray"], item.path not in long["slow"]))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an S3 protocol server."""
    with protocol.server() as address:
        yield address


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a fresh bucket; the environment names its server, for this process and those that it starts."""
    for name, value in {**protocol.CREDENTIALS, "AWS_ENDPOINT_URL": s3_server}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    protocol.forget_clients()
    yield protocol.make_bucket()
    protocol.forget_clients()
