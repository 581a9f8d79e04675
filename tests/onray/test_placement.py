"""What is reserved per worker, what is refused, what is waited for, and with which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tailor.errors import ScaleError
from tailor.onray import autoscaler, placement
from tailor.onray.cluster import Cluster, Node
from tailor.onray.placement import await_machines, find_room, resources_per_worker, taken
from tailor.spec.scale import Scale
from tests.helpers.clock import Clock

HERE = Cluster(own=True, nodes=(Node(2, 0),))
CPUS = Cluster(own=False, nodes=(Node(8, 0), Node(8, 0)))
KINDS = Cluster(own=False, nodes=(Node(2, 0), Node(32, 4, "A100"), Node(16, 2, "H100")))
GPUS = Cluster(own=False, nodes=(Node(2, 0), Node(32, 4), Node(32, 4)))
HEAD = Cluster(own=False, nodes=(Node(0, 0),))
PODS = Cluster(own=False, nodes=(Node(0, 0), Node(8, 1), Node(8, 1)))


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
            KINDS,
            {"workers": 1, "accelerator": "B200"},
            True,
            (
                "1 worker with one B200 each was asked for, but the cluster's 3 machines have 50 CPUs and 6 GPUs "
                "(4 A100, 2 H100); set scale.accelerator to a kind that is there, or leave it away"
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


def test_workers_that_find_no_room_are_told_with_what_there_is() -> None:
    asked = resources_per_worker(Scale(workers=2, accelerator="H100"), KINDS, 2, gpu=True)
    assert str(taken(KINDS, 2, asked)) == (
        "2 workers with 8 CPUs and 1 H100 each found no room: the cluster's 3 machines have 50 CPUs and 6 GPUs "
        "(4 A100, 2 H100), and others use them; wait for the cluster's other jobs to end, or lower scale.workers"
    )


class Fakes:
    """A cluster that changes with time, its autoscaler, and what was asked of both."""

    def __init__(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = clock
        self.machines: Callable[[float], Cluster] = lambda seconds: HEAD
        """What is there after so many seconds."""
        self.free: Callable[[float], int] = lambda seconds: 99
        """How many workers there is room for, where their machines are."""
        self.limit = 0
        """For how many workers the autoscaler may bring machines."""
        self.questions: list[tuple[dict[str, float], int]] = []
        self.asked: list[tuple[dict[str, float], int]] = []
        self.told: list[str] = []
        monkeypatch.setattr(placement, "time", clock)
        monkeypatch.setattr(placement, "describe", lambda own: self.machines(self.seconds))
        monkeypatch.setattr(placement, "fits", self.fits)
        monkeypatch.setattr(autoscaler, "can_bring", self.can_bring)

    @property
    def seconds(self) -> float:
        return self.clock.now - 1000.0

    def can_bring(self, bundle: dict[str, float], count: int) -> bool:
        self.questions.append((bundle, count))
        return count <= self.limit

    def fits(self, workers: int, resources: dict[str, float], seconds: float = 1.5) -> bool:
        self.asked.append((resources, workers))
        there = self.machines(self.seconds)
        if resources.get("GPU", 0) * workers > there.gpus or resources["CPU"] * workers > there.cpus:
            self.clock.sleep(seconds)
            return False
        fits = workers <= self.free(self.seconds)
        self.clock.sleep(0.0 if fits else seconds)
        return fits

    def wait(self, cluster: Cluster = HEAD, **scale: Any) -> Cluster:
        return await_machines(Scale(**scale), cluster, self.told.append)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    return Fakes(Clock(), monkeypatch)


def after(seconds: float, cluster: Cluster) -> Callable[[float], Cluster]:
    return lambda now: cluster if now >= seconds else HEAD


def test_a_run_asks_an_autoscaler_for_its_machines_and_goes_on_when_they_come(fakes: Fakes) -> None:
    fakes.limit, fakes.machines = 4, after(300, PODS)
    assert fakes.wait(workers=2, gpu=True) == PODS
    assert 300 <= fakes.seconds < 320
    bundle = {"CPU": 1.0, "GPU": 1.0}
    assert fakes.questions == [(bundle, 2)], "once"
    assert set(map(str, fakes.asked)) == {str((bundle, 2))}, "all of them, all the time"
    assert fakes.told == [
        (
            "waiting up to 15 min 00 s for machines of the cluster's autoscaler: 2 workers with one GPU each were "
            "asked for, but the cluster's machine has 0 CPUs and 0 GPUs"
        ),
        "the machines are there: the cluster's 3 machines have 16 CPUs and 2 GPUs",
    ]


def test_machines_that_do_not_come_in_time_end_the_run(fakes: Fakes) -> None:
    fakes.limit, fakes.machines = 4, after(300, PODS)
    with pytest.raises(ScaleError) as caught:
        fakes.wait(workers=2, gpu=True, placement_timeout=60)
    assert 60 <= fakes.seconds < 75
    assert caught.value.message.removeprefix("no machines came within 1 min 0") in (
        f"{second} s: 2 workers with one GPU each were asked for, but the cluster's machine has 0 CPUs and 0 GPUs"
        for second in range(10)
    )
    assert caught.value.hint == "raise scale.placement_timeout; `ray status` says what machines wait for"


def test_what_no_autoscaler_can_bring_is_refused_at_once(fakes: Fakes) -> None:
    fakes.limit, fakes.machines = 1, after(300, PODS)
    with pytest.raises(ScaleError, match=r"2 workers with one GPU each were asked for, but the .* 0 GPUs;"):
        fakes.wait(workers=2, gpu=True)
    assert fakes.seconds == 0
    assert (fakes.told, fakes.asked) == ([], [])


def test_a_run_that_waits_for_nothing_asks_for_nothing(fakes: Fakes) -> None:
    fakes.limit = 4
    with pytest.raises(ScaleError):
        fakes.wait(workers=2, gpu=True, placement_timeout=0)
    assert (fakes.seconds, fakes.questions, fakes.asked) == (0, [], [])
    assert fakes.wait(PODS, workers=2, gpu=True, placement_timeout=0) == PODS


@pytest.mark.parametrize(("limit", "asked"), [(9, 4), (3, 1)])
def test_a_range_asks_for_all_that_the_autoscaler_may_bring_and_begins_with_the_fewest(
    fakes: Fakes, limit: int, asked: int
) -> None:
    fakes.limit, fakes.machines = limit, after(60, PODS)
    assert fakes.wait(workers={"min": 1, "max": 4}, gpu=True) == PODS
    assert {workers for _, workers in fakes.asked} == {asked}


def test_auto_takes_the_gpus_of_the_machines_that_come(fakes: Fakes) -> None:
    one = Cluster(own=False, nodes=(Node(0, 0), Node(8, 1)))
    fakes.limit = 4
    fakes.machines = lambda seconds: HEAD if seconds < 60 else one if seconds < 120 else PODS
    assert fakes.wait(workers=2) == PODS
    assert fakes.questions == [({"CPU": 1.0}, 2), ({"CPU": 1.0, "GPU": 1.0}, 2)]


def test_declared_cpus_and_kind_are_asked_for(fakes: Fakes) -> None:
    with pytest.raises(ScaleError):
        fakes.wait(workers=2, cpus_per_worker=4, accelerator="H100")
    assert fakes.questions == [({"CPU": 4.0, "GPU": 1.0, "accelerator_type:H100": 0.001}, 2)]


def room(fakes: Fakes, **scale: Any) -> tuple[int, dict[str, float]]:
    gpu, again = scale.pop("gpu", False), scale.pop("again", False)
    return find_room(Scale(**scale), own=False, gpu=gpu, again=again, tell=fakes.told.append)


def test_machines_that_others_use_are_waited_for_and_more_of_their_size_are_asked_for(fakes: Fakes) -> None:
    fakes.machines, fakes.free = lambda _: PODS, lambda seconds: 2 if seconds > 200 else 0
    resources = {"CPU": 8.0, "GPU": 1.0}
    assert room(fakes, workers=2, gpu=True) == (2, resources)
    assert 200 < fakes.seconds < 215
    assert fakes.questions == [], "the cluster has them"
    assert all(asked == (resources, 2) for asked in fakes.asked)
    assert fakes.told == [f"waiting for room: {taken(PODS, 2, resources).message}"]
    fakes.free = lambda _: 0
    with pytest.raises(ScaleError) as caught:
        room(fakes, workers=2, gpu=True, placement_timeout=100)
    assert str(caught.value).startswith("no machines became free within 1 min 4")
    assert (
        "each found no room: the cluster's 3 machines have 16 CPUs and 2 GPUs, and others use them;"
        in str(caught.value)
    )
    assert "raise scale.placement_timeout, or lower scale.workers" in str(caught.value)


def test_machines_that_were_lost_are_waited_for_on_any_cluster(fakes: Fakes) -> None:
    fakes.machines = after(200, PODS)
    assert room(fakes, workers=2, gpu=True, again=True)[0] == 2
    assert (fakes.seconds >= 200, fakes.questions) == (True, [])
    fakes.machines = lambda _: HEAD
    with pytest.raises(ScaleError, match=r"were asked for, but .* 0 GPUs;"):
        room(fakes, workers=2, gpu=True)
