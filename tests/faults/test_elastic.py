"""A range of workers: the run grows when a node is added, continues when one is lost, and the curve is the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tailor.runs.log import read
from tests.helpers.killing import PATHS, Command, comparable_records, ended, make_place

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(900)]

STEPS = ("train.steps=150", "train.micro_batch_size=2", "evaluate.every=50")
SLOW_STEPS = {"module": "tailor.train.step", "name": "StepRunner.step", "does": "wait", "call": 0}
FAST_CHECKS = {"module": "tailor.onray.supervisor", "name": "GROW_SECONDS", "does": "set", "value": 3.0}


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster with a head without CPUs and a node with one CPU. Its workers make slow steps."""
    monkeypatch.setenv("PYTHONPATH", PATHS)  # workers inherit the environment of their node's Ray processes
    monkeypatch.setenv("DISTURB", json.dumps([SLOW_STEPS]))
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 << 20},
    )
    try:
        cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        yield cluster
    finally:
        cluster.shutdown()


def restarts(command: Command) -> list[str]:
    """The status lines in which the worker groups after the first one report from where they resume."""
    return [
        record["message"]
        for record in read(command.run)
        if record["kind"] == "status" and "resuming from step" in record["message"]
    ]


def losses(command: Command) -> list[float]:
    return [record["loss"] for record in comparable_records(command.run) if "loss" in record]


def test_nodes_are_added_and_lost(machines: Any, tmp_path: Path) -> None:
    place = make_place(tmp_path)
    whole = Command(place, "whole", STEPS)
    whole.finish()

    elastic = Command(
        place, "elastic", (*STEPS, "scale.workers={min: 1, max: 2}"), {"RAY_ADDRESS": machines.address}
    )
    process = elastic.start(FAST_CHECKS)
    elastic.wait_for(process, 3)
    second = machines.add_node(num_cpus=1, object_store_memory=80 << 20)
    elastic.wait_until(process, lambda: len(restarts(elastic)) == 1)
    grown_at = elastic.step()
    elastic.wait_for(process, grown_at + 5)
    machines.remove_node(second, allow_graceful=False)
    result = ended(process)
    assert result.code == 0, result.out + result.err
    assert "restarting with more workers: the cluster has room for them" in result.out

    status = json.loads(elastic.run.read_text("status.json"))
    assert len(status["failures"]) == 1
    assert len(restarts(elastic)) == 2
    assert losses(elastic) == pytest.approx(losses(whole), abs=1e-5)
    # Control: another seed gives another curve.
    other = Command(place, "other", (*STEPS, "train.seed=1"))
    other.finish()
    assert losses(other) != pytest.approx(losses(whole), abs=1e-3)
