"""What is asked of an autoscaler, how its report is read, and that nothing stays asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tailor.onray import autoscaler
from tailor.onray.autoscaler import can_bring
from tests.helpers.clock import Clock

GPU = {"CPU": 1.0, "GPU": 1.0}
Request = list[dict[str, float]]


class Control:
    """Ray's control and an autoscaler that looks every 5 s, as far as requests and reports go."""

    def __init__(self, clock: Clock, limit: int) -> None:
        self.clock, self.limit = clock, limit
        self.requests: list[Request] = [[]]
        """Every one that was made, the standing one last."""
        self.meanwhile: Callable[[], None] = lambda: None
        self._version = 0
        self._looked = (0.0, 0, [])  # type: tuple[float, int, Request]

    def request(self, bundles: Request) -> None:
        self.requests.append(bundles)

    def get_cluster_status(self, timeout_s: float) -> bytes:
        from ray.core.generated import autoscaler_pb2 as messages

        self._version += 1
        when, seen, refused = self._looked
        if self.clock.now - when >= 5:
            standing = self.requests[-1]
            refused = standing if len(standing) > self.limit else []
            when, seen = self.clock.now, self._version
            self._version += 1
            self._looked = when, seen, refused
        self.meanwhile()
        state = messages.ClusterResourceState(
            cluster_resource_state_version=self._version,
            cluster_resource_constraints=[self._constraint(self.requests[-1])],
        )
        report = messages.GetClusterStatusReply(cluster_resource_state=state)
        report.autoscaling_state.last_seen_cluster_resource_state_version = seen
        if refused:
            report.autoscaling_state.infeasible_cluster_resource_constraints.append(self._constraint(refused))
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


def test_an_autoscaler_says_what_it_can_bring(control: Callable[..., Control]) -> None:
    for count, expected in ((2, True), (3, False)):
        ray = control(2)
        assert can_bring(GPU, count) is expected
        assert ray.requests == [[], [GPU] * count, []], "nothing stays asked for"
        assert ray.clock.now - 1000.0 < 12, "two looks of the autoscaler"


def test_where_no_autoscaler_reports_nothing_is_asked(
    control: Callable[..., Control], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = control(9)
    monkeypatch.setattr(autoscaler, "_client", lambda: None)
    assert not can_bring(GPU, 1)
    assert ray.requests == [[]]


def test_a_request_of_another_job_is_put_back(control: Callable[..., Control]) -> None:
    ray = control(3)
    ray.requests = [[{"CPU": 4.0}] * 3]
    assert can_bring(GPU, 2)
    assert ray.requests[1:] == [[GPU] * 2, [{"CPU": 4.0}] * 3]
    assert ray.clock.now - 1000.0 > autoscaler.OTHERS_SECONDS, "it was left some time to pass"


def test_runs_that_ask_at_once_are_answered_one_after_the_other(control: Callable[..., Control]) -> None:
    """Another run's question displaces this one, just before the autoscaler looks, and ends 6 s later."""
    ray = control(2)

    def meanwhile() -> None:
        if ray.clock.now - 1000.0 > 4 and len(ray.requests) == 2:
            ray.request([GPU])
        if ray.clock.now - 1000.0 > 10 and ray.requests[-1] == [GPU]:
            ray.request([])

    ray.meanwhile = meanwhile
    assert not can_bring(GPU, 3), "the other's answer is not taken for this one's"
    assert ray.requests == [[], [GPU] * 3, [GPU], [], [GPU] * 3, []]
    assert can_bring(GPU, 2), "the control"


def test_an_autoscaler_that_is_silent_may_bring_all(control: Callable[..., Control]) -> None:
    ray = control(2)
    ray._looked = (1e9, 0, [])
    assert can_bring(GPU, 3)
    assert ray.clock.now - 1000.0 >= autoscaler.ANSWER_SECONDS
    assert ray.requests == [[], [GPU] * 3, []]
