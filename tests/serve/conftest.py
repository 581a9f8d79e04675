"""Shared by the tests of this folder: two adapters on a tiny base, served by this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers import serving


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return serving.two_adapters(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def server(adapters: dict[str, str]) -> Iterator[serving.Served]:
    with serving.local(adapters) as served:
        yield served
