"""Where a run executes, and the hardware that it detects there."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tailor.errors import ScaleError
from tailor.onray.cluster import (
    DETECT_SECONDS,
    Cluster,
    Node,
    connect,
    hardware,
    in_process,
    threads,
)
from tailor.spec.scale import Scale

KINDS = Cluster(is_local=False, nodes=(Node(2, 0), Node(32, 4, "A100"), Node(16, 2, "H100")))


def test_a_missing_gpu_type_is_an_error() -> None:
    """Otherwise a run with `scale.gpu: auto` would use CPUs."""
    with pytest.raises(ScaleError) as caught:
        hardware(Scale(accelerator="B200"), KINDS)
    assert str(caught.value) == (
        "no node has a GPU of type B200: the cluster has 50 CPUs and 6 GPUs (4 A100, 2 H100) on 3 nodes; "
        "set scale.accelerator to a GPU type that the cluster has, or remove it"
    )
    with pytest.raises(
        ScaleError, match=r"scale\.accelerator: B200 needs a cluster, but the run uses this machine only"
    ):
        hardware(Scale(accelerator="B200"), None)


class Busy:
    """A simulated Ray cluster without free resources."""

    class exceptions:
        GetTimeoutError = TimeoutError

    def __init__(self) -> None:
        self.waited: list[float] = []
        self.canceled = 0

    def remote(self, **_: object) -> Callable[[object], Busy]:
        self.remote = lambda *_: self  # type: ignore[method-assign, assignment]
        return lambda _: self

    def wait(self, _: object, timeout: float) -> tuple[list[object], list[object]]:
        self.waited.append(timeout)
        return [], []

    def get(self, _: object, timeout: float) -> object:
        self.waited.append(timeout)
        raise TimeoutError

    def cancel(self, _: object) -> None:
        self.canceled += 1


def test_a_busy_cluster_is_waited_for_until_placement_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray, reported = Busy(), list[str]()
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(ScaleError) as caught:
        hardware(Scale(placement_timeout=30), KINDS, reported.append)
    assert (ray.waited, ray.canceled) == ([DETECT_SECONDS, 30 + DETECT_SECONDS], 1)
    assert reported == [
        (
            "waiting for a free GPU: other jobs use the cluster, which has 50 CPUs and 6 GPUs (4 A100, 2 H100) "
            "on 3 nodes"
        )
    ]
    assert str(caught.value) == (
        "no GPU became free within 30 s: other jobs use the cluster, which has 50 CPUs and 6 GPUs (4 A100, 2 H100) "
        "on 3 nodes; wait for the other jobs to end, or raise scale.placement_timeout"
    )


def test_one_worker_without_a_cluster_trains_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    assert in_process(Scale())
    assert not in_process(Scale(workers=2))
    assert not in_process(Scale(address="local"))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert not in_process(Scale())
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not in_process(Scale())


def test_an_unreachable_address_is_an_error_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(ScaleError, match=f"cannot connect to the Ray cluster at 127.0.0.1:{port}"):
        connect(Scale(address=f"127.0.0.1:{port}"))
    assert time.monotonic() - began < 10


def test_threads_equal_the_reserved_cpus_unless_the_user_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads(cpus) for cpus in (8.0, 1.0, 0.5)] == [8, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads(8.0) == 3


def test_placement_does_not_import_ray() -> None:
    code = "import sys, tailor.onray.placement; sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
