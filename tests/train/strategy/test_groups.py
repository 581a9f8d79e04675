"""Process groups wait as long as the default group: rank 0 may upload a large artifact for hours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from tailor.machine import COLLECTIVE_TIMEOUT
from tailor.models import sequence
from tailor.train.strategy.internals import set_group_timeout


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], Any]]:
    """(ranks, timeout) of each group that is made; no timeout means 10 minutes with NCCL."""
    found: list[tuple[list[int], Any]] = []

    def new_group(ranks: Any = None, timeout: Any = None) -> object:
        found.append((list(ranks), timeout))
        return object()

    monkeypatch.setattr(dist, "new_group", new_group)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    return found


def test_sequence_parallel_groups(made: list[tuple[list[int], Any]]) -> None:
    group = sequence.join(2)
    assert group is not None
    assert made == [([0, 1], COLLECTIVE_TIMEOUT), ([2, 3], COLLECTIVE_TIMEOUT)]


def test_groups_of_deepspeed(made: list[tuple[list[int], Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    comm = pytest.importorskip("deepspeed.comm.comm")
    backend = SimpleNamespace(is_initialized=lambda: True, new_group=dist.new_group)
    monkeypatch.setattr(comm, "cdb", backend)
    comm.new_group(ranks=range(4))
    assert made == [([0, 1, 2, 3], None)], "control"
    set_group_timeout(COLLECTIVE_TIMEOUT)
    comm.new_group(ranks=range(4))
    assert made[1:] == [([0, 1, 2, 3], COLLECTIVE_TIMEOUT)]
