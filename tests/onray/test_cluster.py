"""What is reserved per worker, what is refused, and with which words."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from tailor.errors import ScaleError
from tailor.onray.cluster import (
    Cluster,
    Node,
    connect,
    hardware,
    in_process,
    resources_per_worker,
    taken,
    threads,
)
from tailor.spec.scale import Scale

HERE = Cluster(own=True, nodes=(Node(2, 0),))
CPUS = Cluster(own=False, nodes=(Node(8, 0), Node(8, 0)))
KINDS = Cluster(own=False, nodes=(Node(2, 0), Node(32, 4, "A100"), Node(16, 2, "H100")))
GPUS = Cluster(own=False, nodes=(Node(2, 0), Node(32, 4), Node(32, 4)))


@pytest.mark.parametrize(
    ("cluster", "scale", "gpu", "expected"),
    [
        (HERE, {"workers": 1}, False, {"CPU": 2.0}),
        (HERE, {"workers": 2}, False, {"CPU": 1.0}),
        (HERE, {"workers": 4}, False, {"CPU": 0.5}),
        (HERE, {"workers": 3}, False, {"CPU": 0.6666}),
        (CPUS, {"workers": 2}, False, {"CPU": 8.0}),
        (CPUS, {"workers": 3}, False, {"CPU": 4.0}),
        (CPUS, {"workers": 16}, False, {"CPU": 1.0}),
        (CPUS, {"workers": 4, "cpus_per_worker": 3}, False, {"CPU": 3.0}),
        (GPUS, {"workers": 8}, True, {"CPU": 8.0, "GPU": 1.0}),
        (GPUS, {"workers": 8, "cpus_per_worker": 2}, True, {"CPU": 2.0, "GPU": 1.0}),
        (KINDS, {"workers": 6}, True, {"CPU": 8.0, "GPU": 1.0}),
        (
            KINDS,
            {"workers": 2, "accelerator": "H100"},
            True,
            {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H100": 0.001},
        ),
    ],
)
def test_reserved_per_worker(
    cluster: Cluster, scale: dict[str, Any], gpu: bool, expected: dict[str, float]
) -> None:
    resources = resources_per_worker(Scale(**scale), cluster, scale.get("workers", 1), gpu=gpu)
    assert resources == expected
    assert resources["CPU"] * scale["workers"] <= cluster.cpus


@pytest.mark.parametrize(
    ("cluster", "scale", "gpu", "message"),
    [
        (
            CPUS,
            {"workers": 17},
            False,
            (
                "17 workers with 1 CPU each were asked for, but the cluster's 2 machines have 16 CPUs and 0 GPUs, "
                "which is room for 16; lower scale.workers or scale.cpus_per_worker"
            ),
        ),
        (
            HERE,
            {"workers": 2, "cpus_per_worker": 2},
            False,
            (
                "2 workers with 2 CPUs each were asked for, but this machine has 2 CPUs and 0 GPUs, "
                "which is room for 1; lower scale.workers or scale.cpus_per_worker"
            ),
        ),
        (
            GPUS,
            {"workers": 9},
            True,
            (
                "9 workers with one GPU each were asked for, but the cluster's 3 machines have 66 CPUs and 8 GPUs; "
                "set scale.workers: 8 or less, or scale.gpu: false"
            ),
        ),
        (
            KINDS,
            {"workers": 3, "accelerator": "H100"},
            True,
            (
                "3 workers with one H100 each were asked for, but the cluster's 3 machines have 50 CPUs and 6 GPUs "
                "(4 A100, 2 H100); set scale.workers: 2 or less, or scale.gpu: false"
            ),
        ),
        (
            HERE,
            {"workers": 1},
            True,
            (
                "1 worker with one GPU each was asked for, but this machine has 2 CPUs and 0 GPUs; "
                "set scale.gpu: auto, or run where there are GPUs"
            ),
        ),
    ],
)
def test_what_cannot_be_placed_is_refused(
    cluster: Cluster, scale: dict[str, Any], gpu: bool, message: str
) -> None:
    with pytest.raises(ScaleError) as caught:
        resources_per_worker(Scale(**scale), cluster, scale.get("workers", 1), gpu=gpu)
    assert str(caught.value) == message


def test_a_kind_of_gpu_that_is_not_there_is_told() -> None:
    """Else a run that may use CPUs would."""
    with pytest.raises(ScaleError) as caught:
        hardware(Scale(accelerator="B200"), KINDS)
    assert str(caught.value) == (
        "a GPU of kind B200 was asked for, but the cluster's 3 machines have 50 CPUs and 6 GPUs (4 A100, 2 H100); "
        "set scale.accelerator to a kind that is there, or leave it away"
    )
    with pytest.raises(ScaleError, match="asked for, but the run joins no cluster"):
        hardware(Scale(accelerator="B200"), None)


def test_workers_that_find_no_room_are_told_with_what_there_is() -> None:
    asked = resources_per_worker(Scale(workers=2, accelerator="H100"), KINDS, 2, gpu=True)
    assert str(taken(KINDS, 2, asked)) == (
        "2 workers with 8 CPUs and 1 H100 each found no room: the cluster's 3 machines have 50 CPUs and 6 GPUs "
        "(4 A100, 2 H100), and others use them; wait for the cluster's other jobs to end, or lower scale.workers"
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


def test_an_address_where_nothing_listens_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(ScaleError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
        connect(Scale(address=f"127.0.0.1:{port}"))
    assert time.monotonic() - began < 10


def test_threads_follow_the_reserved_cpus_unless_the_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads(cpus) for cpus in (8.0, 1.0, 0.5)] == [8, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads(8.0) == 3


def test_placing_imports_no_ray() -> None:
    code = "import sys, tailor.onray.cluster; sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
