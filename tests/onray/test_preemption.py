"""Preemption notices: Ray's own retries are off, a notice stops the group, and lost nodes are named."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

from tailor.errors import TailorError, WorkerError
from tailor.onray import cluster, failures, nodes, preemption, trainer, worker
from tailor.onray.failures import Preempted
from tailor.onray.monitor import LocalChannel
from tailor.onray.nodes import NodeState
from tests.helpers.clock import Clock

INFO = SimpleNamespace(deadline_ms=1_000_000 + 19_400, preempted_node_ids=["b"])
STATES = {"a": NodeState("head (10.0.0.1)", True), "b": NodeState("gpu-2 (10.0.0.2)", True)}
PLACED = {0: "a", 1: "b", 2: "b"}


@pytest.fixture(autouse=True)
def states(monkeypatch: pytest.MonkeyPatch) -> dict[str, NodeState]:
    found = dict(STATES)
    monkeypatch.setattr(nodes, "states", lambda: dict(found))
    return found


def test_ray_retries_nothing_itself() -> None:
    config = failures.no_retries()
    assert (config.max_failures, config.controller_failure_limit) == (0, 0)
    assert getattr(config, "max_preemption_failures", 0) == 0


def test_an_older_ray_without_preemption_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Older:
        max_failures: int = 0
        controller_failure_limit: int = -1

    monkeypatch.setattr(ray.train, "FailureConfig", Older)
    for name in ("get_preemption_info", "PreemptionError"):
        monkeypatch.delattr(ray.train, name, raising=False)
    config: Any = failures.no_retries()
    assert config == Older(0, 0)
    threads = threading.active_count()
    assert preemption.NoticeWatcher().notice is None
    assert threading.active_count() == threads
    error = ValueError("another error")
    assert failures.translated(error, 2, {}) is error


@pytest.mark.skipif(not hasattr(ray.train, "PreemptionError"), reason="Ray before 2.55")
def test_the_error_of_a_preemption_names_the_node() -> None:
    error = ray.train.PreemptionError(ray.train.PreemptionInfo(None, {"b": [1, 2]}))
    found = failures.translated(error, 3, PLACED)
    assert isinstance(found, Preempted)
    assert found.message == "node gpu-2 (10.0.0.2) was preempted"


@dataclass
class Channel(LocalChannel):
    records: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.records.append, lambda: False)


def test_workers_stop_at_a_notice_and_record_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "POLL_SECONDS", 0.01)
    answers = iter([None, None, INFO])
    watcher = preemption.NoticeWatcher(lambda: next(answers))
    host = object.__new__(worker.WorkerHost)
    records: list[dict[str, Any]] = []
    host._channel, host._watcher, host._noticed = Channel(), watcher, False
    monkeypatch.setattr(host, "report", records.append)
    monkeypatch.setattr(preemption, "time", Clock())
    deadline = time.monotonic() + 10
    while not host.stopping() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert host.stopping()
    message = (
        "node gpu-2 (10.0.0.2) will be preempted in 19 s: stopping after this step and saving a checkpoint"
    )
    assert records == [{"kind": "status", "message": message, "preempted": "node gpu-2 (10.0.0.2)"}]
    # The control: without a notice nothing stops.
    host._watcher = preemption.NoticeWatcher(lambda: None)
    time.sleep(0.1)
    assert not host.stopping()


def test_a_watcher_ends_with_its_group() -> None:
    def ask() -> None:
        raise RayActorError

    watcher = preemption.NoticeWatcher(ask)
    assert watcher.notice is None


def test_several_nodes_and_an_unknown_deadline() -> None:
    record = preemption.notice_record(SimpleNamespace(deadline_ms=None, preempted_node_ids=["a", "b", "cc"]))
    assert record["preempted"] == "nodes head (10.0.0.1), gpu-2 (10.0.0.2), cc"
    assert "will be preempted soon" in record["message"]


def test_only_a_local_ray_has_no_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
    monkeypatch.delenv(name, raising=False)
    assert name not in cluster.RAY_ENVIRONMENT
    assert trainer._watch_settings(local_ray=False) == {}
    assert trainer._watch_settings(local_ray=True) == {name: "0"}
    monkeypatch.setenv(name, "1")
    assert trainer._watch_settings(local_ray=True) == {}, "the user's setting is kept"


def lost(states: dict[str, NodeState]) -> None:
    states["b"] = NodeState(STATES["b"].name, False)


@pytest.mark.parametrize(
    ("error", "before", "message"),
    [
        (ActorDiedError(), lost, "node gpu-2 (10.0.0.2) was lost, with workers 1, 2"),
        (
            ActorDiedError(),
            lambda _: None,
            "the process of worker 1 on node gpu-2 (10.0.0.2) died: it was killed, or the node ran out of memory",
        ),
        (
            RayActorError(preempted=True),
            lost,
            "node gpu-2 (10.0.0.2) was preempted, with workers 1, 2",
        ),
    ],
    ids=["node", "process", "preempted"],
)
def test_the_lost_node_is_named(
    error: Exception,
    before: Callable[[dict[str, NodeState]], None],
    message: str,
    states: dict[str, NodeState],
) -> None:
    before(states)
    assert failures.cause({0: WorkerError("a consequence"), 1: error}, PLACED).message == message


def test_a_node_that_does_not_answer_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, states: dict[str, NodeState]
) -> None:
    class Later(Clock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if self.now >= 1007:
                lost(states)

    unavailable = ActorUnavailableError("no answer", None)
    monkeypatch.setattr(failures, "time", clock := Later())
    found: TailorError = failures.cause({1: unavailable}, PLACED)
    assert found.message == "node gpu-2 (10.0.0.2) was lost, with workers 1, 2"
    assert clock.now == 1007
    # The control: a node that stays alive is waited for at most LOST_SECONDS.
    states.update(STATES)
    monkeypatch.setattr(failures, "time", patient := Clock())
    assert "the process of worker 1 on node gpu-2" in failures.cause({1: unavailable}, PLACED).message
    assert patient.now == 1000 + failures.LOST_SECONDS


def test_a_single_node_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "states", lambda: {"a": STATES["a"]})
    found = failures.cause({0: ActorDiedError()}, {0: "a"})
    assert found.message == "the process of worker 0 died: it was killed, or the node ran out of memory"


def test_draining_nodes_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [{"NodeID": node, "Alive": True, "Resources": {"CPU": 4.0}} for node in "ab"]
    monkeypatch.setattr(ray, "nodes", lambda: listed)
    for leaving, cpus in ((frozenset("b"), 4), (frozenset(), 8)):
        monkeypatch.setattr(cluster, "draining", lambda leaving=leaving: leaving)
        assert cluster.current_cluster(is_local=False).cpus == cpus


def test_an_older_ray_without_draining_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray._private.state, "state", SimpleNamespace())
    assert nodes.draining() == frozenset()


def test_rays_dumps_stay_out_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Ray prints the last lines of a dead raylet's log through this function, with every log level."""
    from ray._private.worker import print_to_stdstream

    from tailor.spec.scale import Scale

    before = ray._private.worker._worker_logs_enabled
    try:
        for verbose, text in ((True, "a dump of True"), (False, "")):
            cluster.import_ray(Scale(workers=2), verbose=verbose)
            dump = {"lines": [f"a dump of {verbose}"], "pid": "raylet", "is_err": False}
            print_to_stdstream(dump, ignore_prefix=False)
            assert text in capsys.readouterr().out if text else capsys.readouterr().out == ""
    finally:
        ray._private.worker._worker_logs_enabled = before


def test_the_environment_is_restored() -> None:
    from tailor import machine

    os.environ.pop("TAILOR_A", None)
    with machine.environment({"TAILOR_A": "1"}), machine.environment({"TAILOR_A": "2"}):
        assert os.environ["TAILOR_A"] == "2"
    assert "TAILOR_A" not in os.environ
