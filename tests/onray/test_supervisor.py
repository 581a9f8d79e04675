"""Which errors restart a run, with how many workers, and which do not."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from tailor.errors import DataError, ScaleError, TrainingError, WorkerError
from tailor.onray import placement, supervisor
from tailor.onray.cluster import Cluster, Node
from tailor.onray.failures import DeadWorker
from tailor.onray.monitor import Publish
from tailor.onray.supervisor import DriverContext
from tailor.spec.scale import Scale
from tests.helpers.clock import Clock

TWO = Cluster(False, (Node(1, 0), Node(1, 0)))
ONE = Cluster(False, (Node(1, 0),))


class Group:
    """Attempts with prepared ends: (step reached, how it ended or the error)."""

    def __init__(self, *ends: tuple[int, str | Exception]) -> None:
        self.ends = list(ends)
        self.sizes: list[int] = []

    def __call__(
        self, workers: int, resources: dict[str, float], publish: Publish, stop: Callable[[], bool]
    ) -> str:
        self.sizes.append(workers)
        step, end = self.ends.pop(0)
        publish({"kind": "train", "step": step})
        if isinstance(end, Exception):
            raise end
        return end


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (supervisor, placement):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(placement, "current_cluster", lambda is_local: TWO)
    monkeypatch.setattr(placement, "fits", lambda workers, *_: workers <= 2)
    monkeypatch.setattr(placement.autoscaler, "can_provide", lambda *_: False)
    return clock


def supervise(group: Group, records: list[dict[str, Any]] | None = None, **scale: Any) -> bool:
    driver = DriverContext(publish=(records if records is not None else []).append)
    return supervisor.supervise(group, Scale(**{"workers": 2, **scale}), TWO, driver, gpu=False)


def test_a_failed_worker_is_restarted_and_reported() -> None:
    records: list[dict[str, Any]] = []
    group = Group((3, WorkerError("one")), (5, WorkerError("two")), (9, "finished"))
    assert supervise(group, records)
    assert group.sizes == [2, 2, 2]
    assert [(r["step"], r["error"]) for r in records if r["kind"] == "failure"] == [(3, "one"), (5, "two")]


def test_the_same_error_at_the_same_step_is_raised() -> None:
    group = Group((3, WorkerError("again")), (3, WorkerError("again")), (9, "finished"))
    with pytest.raises(WorkerError, match="again"):
        supervise(group, max_failures=9)
    assert len(group.sizes) == 2
    # Controls: another error at that step, and the same error at another step, are tried again.
    assert supervise(Group((3, WorkerError("a")), (3, WorkerError("b")), (9, "finished")))
    assert supervise(Group((3, WorkerError("a")), (4, WorkerError("a")), (9, "finished")))


def test_processes_that_die_at_the_same_step_are_restarted() -> None:
    assert supervise(Group((3, DeadWorker("died")), (3, DeadWorker("died")), (9, "finished")))


@pytest.mark.parametrize("max_failures", [0, 2])
def test_failures_above_the_limit_are_raised(max_failures: int) -> None:
    group = Group(*((step, WorkerError(f"at {step}")) for step in range(5)))
    with pytest.raises(WorkerError, match=f"at {max_failures}"):
        supervise(group, max_failures=max_failures)
    assert len(group.sizes) == max_failures + 1


@pytest.mark.parametrize("error", [DataError("a row"), TrainingError("the loss is nan")])
def test_user_errors_and_divergence_are_not_retried(error: Exception) -> None:
    group = Group((3, error), (9, "finished"))
    with pytest.raises(type(error)):
        supervise(group)
    assert len(group.sizes) == 1


def test_a_run_that_stops_on_request_is_not_restarted() -> None:
    for end in ("stopped", WorkerError("killed with the driver")):
        driver = DriverContext(publish=lambda _: None)

        def once(*_: Any, end: str | Exception = end, driver: DriverContext = driver) -> str:
            driver.interrupts.can_save = True
            driver.interrupts.requested = signal.SIGTERM
            if isinstance(end, Exception):
                raise end
            return end

        assert not supervisor.supervise(once, Scale(workers=2, max_failures=0), TWO, driver, gpu=False)


def test_a_range_continues_with_as_many_workers_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = [2, 1, 2]
    group = Group((3, WorkerError("lost")), (5, "stopped"), (9, "finished"))

    def once(*arguments: Any) -> str:
        room = rooms.pop(0)
        assert arguments[0] == room
        monkeypatch.setattr(placement, "fits", lambda workers, *_: workers <= (rooms or [2])[0])
        return group(*arguments)

    driver = DriverContext(publish=lambda _: None)
    assert supervisor.supervise(once, Scale(workers={"min": 1, "max": 2}), TWO, driver, gpu=False)
    assert group.sizes == [2, 1, 2]


def test_a_range_checks_for_room_during_training(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"workers": 1}
    monkeypatch.setattr(placement, "fits", lambda workers, *_: workers <= free["workers"])
    answers = []

    def once(workers: int, _: Any, publish: Publish, stop: Callable[[], bool]) -> str:
        clock.sleep(supervisor.GROW_SECONDS)
        assert not stop()  # not before the first step
        publish({"kind": "train", "step": 1})
        if workers == 2:
            answers.append(stop())
            return "finished"
        free["workers"] = 0
        clock.sleep(supervisor.GROW_SECONDS)
        answers.append(stop())  # nothing is free
        free["workers"] = 2
        answers.append(stop())  # the interval has not passed
        clock.sleep(supervisor.GROW_SECONDS)
        answers.append(stop())
        return "stopped"

    driver = DriverContext(publish=lambda _: None)
    assert supervisor.supervise(once, Scale(workers={"min": 1, "max": 2}), TWO, driver, gpu=False)
    assert answers == [False, False, True, False]


def test_a_fixed_number_of_workers_waits_for_lost_nodes_until_the_timeout(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[dict[str, Any]] = []
    group = Group((3, WorkerError("lost")), (9, "finished"))
    back = 1000.0 + Scale().placement_timeout / 2
    monkeypatch.setattr(
        placement, "current_cluster", lambda is_local: ONE if group.sizes and clock.now < back else TWO
    )
    assert supervise(group, records)
    assert any("for lost nodes: 2 workers" in record.get("message", "") for record in records)

    group = Group((3, WorkerError("lost")), (9, "finished"))
    monkeypatch.setattr(placement, "current_cluster", lambda is_local: ONE if group.sizes else TWO)
    with pytest.raises(ScaleError, match="2 workers with 1 CPU each do not fit on the cluster"):
        supervise(group)
    assert clock.now - back >= Scale().placement_timeout - 5


def test_impossible_requests_fail_at_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ScaleError, match="room for 2"):
        supervise(Group(), workers=3)
    assert clock.now == 1000.0
    monkeypatch.setattr(placement, "fits", lambda *_: False)
    with pytest.raises(ScaleError, match="beside the other jobs"):
        supervise(Group())
    assert clock.now >= 1000.0 + Scale().placement_timeout


def test_the_interval_doubles_after_each_restart_without_more_workers(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for one more worker alone, but never for two at once."""
    monkeypatch.setattr(placement, "fits", lambda workers, *_: workers <= 1)
    pauses: list[float] = []

    def once(workers: int, _: Any, publish: Publish, stop: Callable[[], bool]) -> str:
        assert workers == 1
        publish({"kind": "train", "step": 1})
        began = clock.now
        while not stop():
            clock.sleep(1.0)
        pauses.append(clock.now - began)
        return "stopped" if len(pauses) < 4 else "finished"

    driver = DriverContext(publish=lambda _: None)
    assert supervisor.supervise(once, Scale(workers={"min": 1, "max": 2}), TWO, driver, gpu=False)
    assert pauses == [20.0, 40.0, 80.0, 160.0]


def test_sequence_parallel_workers_are_added_and_removed_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "current_cluster", lambda is_local: Cluster(False, (Node(5, 0),)))
    monkeypatch.setattr(placement, "fits", lambda workers, *_: workers <= 5)
    for group_size, sizes in ((1, [5]), (2, [4])):
        group = Group((1, "finished"))
        assert supervise(group, workers={"min": 2, "max": 6}, sequence_parallel=group_size)
        assert group.sizes == sizes
