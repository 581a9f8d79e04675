"""Requests to the autoscaler: how its report is read, and that no request is left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tailor.onray import autoscaler
from tailor.onray.autoscaler import can_provide
from tests.helpers.clock import Clock

GPU = {"CPU": 1.0, "GPU": 1.0}
Request = list[dict[str, float]]


class Control:
    """Simulates Ray's control service with an autoscaler that updates every 5 s: requests and reports only."""

    def __init__(self, clock: Clock, limit: int) -> None:
        self.clock, self.limit = clock, limit
        self.requests: list[Request] = [[]]
        """All requests so far. The last one is current."""
        self.meanwhile: Callable[[], None] = lambda: None
        self._version = 0
        self._update = (0.0, 0, [])  # type: tuple[float, int, Request]

    def request(self, bundles: Request) -> None:
        self.requests.append(bundles)

    def get_cluster_status(self, timeout_s: float) -> bytes:
        from ray.core.generated import autoscaler_pb2 as messages

        self._version += 1
        when, seen, infeasible = self._update
        if self.clock.now - when >= 5:
            current = self.requests[-1]
            infeasible = current if len(current) > self.limit else []
            when, seen = self.clock.now, self._version
            self._version += 1
            self._update = when, seen, infeasible
        self.meanwhile()
        state = messages.ClusterResourceState(
            cluster_resource_state_version=self._version,
            cluster_resource_constraints=[self._constraint(self.requests[-1])],
        )
        report = messages.GetClusterStatusReply(cluster_resource_state=state)
        report.autoscaling_state.last_seen_cluster_resource_state_version = seen
        if infeasible:
            report.autoscaling_state.infeasible_cluster_resource_constraints.append(
                self._constraint(infeasible)
            )
        return report.SerializeToString()

    @staticmethod
    def _constraint(bundles: Request) -> Any:
        from ray.core.generated import autoscaler_pb2 as messages

        constraint = messages.ClusterResourceConstraint()
        for bundle in bundles:
            constraint.resource_requests.add(request={"resources_bundle": bundle}, count=1)
        return constraint


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Control]:
    def made(limit: int) -> Control:
        clock = Clock()
        control = Control(clock, limit)
        monkeypatch.setattr(autoscaler, "time", clock)
        monkeypatch.setattr(autoscaler, "_client", lambda: control)
        monkeypatch.setattr("ray.autoscaler.sdk.request_resources", control.request)
        return control

    return made


def test_the_autoscaler_reports_what_it_can_provide(control: Callable[..., Control]) -> None:
    for count, expected in ((2, True), (3, False)):
        ray = control(2)
        assert can_provide(GPU, count) is expected
        assert ray.requests == [[], [GPU] * count, []], "no request is left behind"
        assert ray.clock.now - 1000.0 < 12, "two updates of the autoscaler"


def test_without_an_autoscaler_nothing_is_requested(
    control: Callable[..., Control], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = control(9)
    monkeypatch.setattr(autoscaler, "_client", lambda: None)
    assert not can_provide(GPU, 1)
    assert ray.requests == [[]]


def test_the_request_of_another_job_is_restored(control: Callable[..., Control]) -> None:
    ray = control(3)
    ray.requests = [[{"CPU": 4.0}] * 3]
    assert can_provide(GPU, 2)
    assert ray.requests[1:] == [[GPU] * 2, [{"CPU": 4.0}] * 3]
    assert ray.clock.now - 1000.0 > autoscaler.OTHERS_SECONDS, "it had time to end by itself"


def test_simultaneous_requests_are_answered_one_after_the_other(control: Callable[..., Control]) -> None:
    """Another run replaces this request just before the autoscaler's update, and withdraws its own 6 s later."""
    ray = control(2)

    def meanwhile() -> None:
        if ray.clock.now - 1000.0 > 4 and len(ray.requests) == 2:
            ray.request([GPU])
        if ray.clock.now - 1000.0 > 10 and ray.requests[-1] == [GPU]:
            ray.request([])

    ray.meanwhile = meanwhile
    assert not can_provide(GPU, 3), "the answer to the other request is not used"
    assert ray.requests == [[], [GPU] * 3, [GPU], [], [GPU] * 3, []]
    assert can_provide(GPU, 2), "the control"


def test_an_autoscaler_that_does_not_answer_may_provide_everything(control: Callable[..., Control]) -> None:
    ray = control(2)
    ray._update = (1e9, 0, [])
    assert can_provide(GPU, 3)
    assert ray.clock.now - 1000.0 >= autoscaler.ANSWER_SECONDS
    assert ray.requests == [[], [GPU] * 3, []]
