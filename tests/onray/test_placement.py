"""Placement of workers: what each reserves, which requests fail, which ones wait, and the exact messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tailor.errors import ScaleError
from tailor.onray import autoscaler, placement
from tailor.onray.cluster import Cluster, Node
from tailor.onray.placement import busy_error, find_room, resources_per_worker, wait_for_nodes
from tailor.spec.scale import Scale
from tests.helpers.clock import Clock

HERE = Cluster(is_local=True, nodes=(Node(2, 0),))
CPUS = Cluster(is_local=False, nodes=(Node(8, 0), Node(8, 0)))
KINDS = Cluster(is_local=False, nodes=(Node(2, 0), Node(32, 4, "A100"), Node(16, 2, "H100")))
GPUS = Cluster(is_local=False, nodes=(Node(2, 0), Node(32, 4), Node(32, 4)))
HEAD = Cluster(is_local=False, nodes=(Node(0, 0),))
PODS = Cluster(is_local=False, nodes=(Node(0, 0), Node(8, 1), Node(8, 1)))


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
                "17 workers with 1 CPU each do not fit on the cluster, which has 16 CPUs and 0 GPUs on 2 nodes: "
                "room for 16 workers; lower scale.workers or scale.cpus_per_worker"
            ),
        ),
        (
            HERE,
            {"workers": 2, "cpus_per_worker": 2},
            False,
            (
                "2 workers with 2 CPUs each do not fit on this machine, which has 2 CPUs and 0 GPUs: "
                "room for 1 worker; lower scale.workers or scale.cpus_per_worker"
            ),
        ),
        (
            GPUS,
            {"workers": 9},
            True,
            (
                "9 workers with 1 GPU each do not fit on the cluster, which has 66 CPUs and 8 GPUs on 3 nodes; "
                "set scale.workers: 8 or less, or scale.gpu: false"
            ),
        ),
        (
            KINDS,
            {"workers": 3, "accelerator": "H100"},
            True,
            (
                "3 workers with 1 H100 each do not fit on the cluster, which has 50 CPUs and 6 GPUs "
                "(4 A100, 2 H100) on 3 nodes; set scale.workers: 2 or less, or scale.gpu: false"
            ),
        ),
        (
            KINDS,
            {"workers": 1, "accelerator": "B200"},
            True,
            (
                "1 worker with 1 B200 each does not fit on the cluster, which has 50 CPUs and 6 GPUs "
                "(4 A100, 2 H100) on 3 nodes; set scale.accelerator to a GPU type that the cluster has, or remove it"
            ),
        ),
        (
            HERE,
            {"workers": 1},
            True,
            (
                "1 worker with 1 GPU each does not fit on this machine, which has 2 CPUs and 0 GPUs; "
                "set scale.gpu: auto, or run on a machine with GPUs"
            ),
        ),
    ],
)
def test_impossible_requests_fail(cluster: Cluster, scale: dict[str, Any], gpu: bool, message: str) -> None:
    with pytest.raises(ScaleError) as caught:
        resources_per_worker(Scale(**scale), cluster, scale.get("workers", 1), gpu=gpu)
    assert str(caught.value) == message


def test_the_busy_error_names_the_resources() -> None:
    resources = resources_per_worker(Scale(workers=2, accelerator="H100"), KINDS, 2, gpu=True)
    assert str(busy_error(KINDS, 2, resources)) == (
        "2 workers with 8 CPUs and 1 H100 each do not fit beside the other jobs on the cluster, which has 50 CPUs and "
        "6 GPUs (4 A100, 2 H100) on 3 nodes; wait for the other jobs to end, or lower scale.workers"
    )


class Fakes:
    """A simulated cluster that changes with time, its autoscaler, and the requests to both."""

    def __init__(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = clock
        self.nodes: Callable[[float], Cluster] = lambda seconds: HEAD
        """The cluster after a number of seconds."""
        self.free: Callable[[float], int] = lambda seconds: 99
        """How many workers fit beside other jobs, after a number of seconds."""
        self.limit = 0
        """For how many workers the autoscaler can provide nodes."""
        self.autoscaler_requests: list[tuple[dict[str, float], int]] = []
        self.reservations: list[tuple[dict[str, float], int]] = []
        self.reported: list[str] = []
        monkeypatch.setattr(placement, "time", clock)
        monkeypatch.setattr(placement, "current_cluster", lambda is_local: self.nodes(self.seconds))
        monkeypatch.setattr(placement, "fits", self.fits)
        monkeypatch.setattr(autoscaler, "can_provide", self.can_provide)

    @property
    def seconds(self) -> float:
        return self.clock.now - 1000.0

    def can_provide(self, bundle: dict[str, float], count: int) -> bool:
        self.autoscaler_requests.append((bundle, count))
        return count <= self.limit

    def fits(self, workers: int, resources: dict[str, float], seconds: float = 1.5) -> bool:
        self.reservations.append((resources, workers))
        current = self.nodes(self.seconds)
        if resources.get("GPU", 0) * workers > current.gpus or resources["CPU"] * workers > current.cpus:
            self.clock.sleep(seconds)
            return False
        fits = workers <= self.free(self.seconds)
        self.clock.sleep(0.0 if fits else seconds)
        return fits

    def wait(self, cluster: Cluster = HEAD, **scale: Any) -> Cluster:
        return wait_for_nodes(Scale(**scale), cluster, self.reported.append)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    return Fakes(Clock(), monkeypatch)


def after(seconds: float, cluster: Cluster) -> Callable[[float], Cluster]:
    return lambda now: cluster if now >= seconds else HEAD


def test_a_run_waits_for_pending_nodes_and_continues_when_they_start(fakes: Fakes) -> None:
    fakes.limit, fakes.nodes = 4, after(300, PODS)
    assert fakes.wait(workers=2, gpu=True) == PODS
    assert 300 <= fakes.seconds < 320
    bundle = {"CPU": 1.0, "GPU": 1.0}
    assert fakes.autoscaler_requests == [(bundle, 2)], "once"
    assert set(map(str, fakes.reservations)) == {str((bundle, 2))}, "always for all workers"
    assert fakes.reported == [
        (
            "waiting up to 15 min 00 s for pending nodes: 2 workers with 1 GPU each do not fit on the cluster, "
            "which has 0 CPUs and 0 GPUs on 1 node"
        ),
        "the nodes are ready: the cluster has 16 CPUs and 2 GPUs on 3 nodes",
    ]


def test_nodes_that_do_not_start_in_time_end_the_run(fakes: Fakes) -> None:
    fakes.limit, fakes.nodes = 4, after(300, PODS)
    with pytest.raises(ScaleError) as caught:
        fakes.wait(workers=2, gpu=True, placement_timeout=60)
    assert 60 <= fakes.seconds < 75
    assert caught.value.message.removeprefix("the pending nodes did not start within 1 min 0") in (
        f"{second} s: 2 workers with 1 GPU each do not fit on the cluster, which has 0 CPUs and 0 GPUs on 1 node"
        for second in range(10)
    )
    assert caught.value.hint == "raise scale.placement_timeout; `ray status` shows why nodes are pending"


def test_requests_that_the_autoscaler_cannot_satisfy_fail_at_once(fakes: Fakes) -> None:
    fakes.limit, fakes.nodes = 1, after(300, PODS)
    with pytest.raises(ScaleError, match=r"2 workers with 1 GPU each do not fit on the .* 0 GPUs on 1 node;"):
        fakes.wait(workers=2, gpu=True)
    assert fakes.seconds == 0
    assert (fakes.reported, fakes.reservations) == ([], [])


def test_without_a_timeout_nothing_is_requested(fakes: Fakes) -> None:
    fakes.limit = 4
    with pytest.raises(ScaleError):
        fakes.wait(workers=2, gpu=True, placement_timeout=0)
    assert (fakes.seconds, fakes.autoscaler_requests, fakes.reservations) == (0, [], [])
    assert fakes.wait(PODS, workers=2, gpu=True, placement_timeout=0) == PODS


@pytest.mark.parametrize(("limit", "requested"), [(9, 4), (3, 1)])
def test_a_range_requests_its_maximum_if_possible_and_starts_with_its_minimum(
    fakes: Fakes, limit: int, requested: int
) -> None:
    fakes.limit, fakes.nodes = limit, after(60, PODS)
    assert fakes.wait(workers={"min": 1, "max": 4}, gpu=True) == PODS
    assert {workers for _, workers in fakes.reservations} == {requested}


def test_gpu_auto_uses_the_gpus_of_new_nodes(fakes: Fakes) -> None:
    one = Cluster(is_local=False, nodes=(Node(0, 0), Node(8, 1)))
    fakes.limit = 4
    fakes.nodes = lambda seconds: HEAD if seconds < 60 else one if seconds < 120 else PODS
    assert fakes.wait(workers=2) == PODS
    assert fakes.autoscaler_requests == [({"CPU": 1.0}, 2), ({"CPU": 1.0, "GPU": 1.0}, 2)]


def test_cpus_and_gpu_type_of_the_recipe_are_requested(fakes: Fakes) -> None:
    with pytest.raises(ScaleError):
        fakes.wait(workers=2, cpus_per_worker=4, accelerator="H100")
    assert fakes.autoscaler_requests == [({"CPU": 4.0, "GPU": 1.0, "accelerator_type:H100": 0.001}, 2)]


def room(fakes: Fakes, **scale: Any) -> tuple[int, dict[str, float]]:
    gpu, restarted = scale.pop("gpu", False), scale.pop("restarted", False)
    return find_room(
        Scale(**scale), is_local=False, gpu=gpu, restarted=restarted, report=fakes.reported.append
    )


def test_a_busy_cluster_is_waited_for_with_a_reservation(fakes: Fakes) -> None:
    fakes.nodes, fakes.free = lambda _: PODS, lambda seconds: 2 if seconds > 200 else 0
    resources = {"CPU": 8.0, "GPU": 1.0}
    assert room(fakes, workers=2, gpu=True) == (2, resources)
    assert 200 < fakes.seconds < 215
    assert fakes.autoscaler_requests == [], "the cluster has enough nodes"
    assert all(reserved == (resources, 2) for reserved in fakes.reservations)
    assert fakes.reported == [
        f"waiting up to 15 min 00 s for free resources: {busy_error(PODS, 2, resources).message}"
    ]
    fakes.free = lambda _: 0
    with pytest.raises(ScaleError) as caught:
        room(fakes, workers=2, gpu=True, placement_timeout=100)
    assert str(caught.value).startswith("no resources became free within 1 min 4")
    assert (
        "each do not fit beside the other jobs on the cluster, which has 16 CPUs and 2 GPUs on 3 nodes;"
        in str(caught.value)
    )
    assert "raise scale.placement_timeout, or lower scale.workers" in str(caught.value)


def test_lost_nodes_are_waited_for_on_any_cluster(fakes: Fakes) -> None:
    fakes.nodes = after(200, PODS)
    assert room(fakes, workers=2, gpu=True, restarted=True)[0] == 2
    assert (fakes.seconds >= 200, fakes.autoscaler_requests) == (True, [])
    fakes.nodes = lambda _: HEAD
    with pytest.raises(ScaleError, match=r"do not fit on .* 0 GPUs on 1 node;"):
        room(fakes, workers=2, gpu=True)
