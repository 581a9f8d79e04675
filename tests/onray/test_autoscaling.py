"""Ray's autoscaler with simulated nodes, which are processes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tailor.runs.status import Status
from tests.helpers.killing import PATHS, Command, make_place
from tests.helpers.ray_clusters import autoscaled

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

BROKEN = {"CPU": 1, "GPU": 1, "accelerator_type:A100": 1, "object_store_memory": 1}
"""A node type that the autoscaler offers but that never starts, because Ray needs more memory."""
TIMEOUTS = """\
from tailor.errors import ScaleError
from tailor.onray import autoscaler, cluster, placement
from tailor.spec.scale import Scale

joined = cluster.connect(Scale())
client = autoscaler._client()
for scale in (Scale(cpus_per_worker=3), Scale(accelerator="A100", placement_timeout=5)):
    try:
        placement.wait_for_nodes(scale, joined, print)
    except ScaleError as error:
        print(error)
    print(autoscaler._requested(autoscaler._report(client).cluster_resource_state.cluster_resource_constraints))
"""
HAS = "the cluster, which has 0 CPUs and 0 GPUs on 1 node"


@pytest.mark.soak
def test_a_run_continues_when_its_node_starts(tmp_path: Path) -> None:
    with autoscaled(broken=BROKEN, large={"CPU": 2}) as environment:
        # The control: no node type has 3 CPUs, and the node with a GPU does not start in time.
        done = subprocess.run(
            [sys.executable, "-c", TIMEOUTS],
            env={**os.environ, **environment, "PYTHONPATH": PATHS},
            capture_output=True,
            text=True,
            check=True,
        )
        impossible, requests, waits, late, requests_after = done.stdout.splitlines()
        assert impossible.startswith(f"1 worker with 3 CPUs each does not fit on {HAS}")
        error = f"1 worker with 1 A100 each does not fit on {HAS}"
        assert waits == f"waiting up to 5.0 s for pending nodes: {error}"
        assert late.startswith("the pending nodes did not start within")
        assert f"{error}; raise scale.placement_timeout; `ray status` shows why nodes are pending" in late
        assert requests == requests_after == "[]", "no request is left behind"

        command = Command(
            make_place(tmp_path),
            "run",
            ("train.steps=2", "evaluate.generation=null", "scale.cpus_per_worker=2"),
            environment,
        )
        out = command.finish().out
    assert "waiting up to 15 min 00 s for pending nodes: 1 worker with 2 CPUs" in out
    assert "the nodes are ready: the cluster has 2 CPUs and 0 GPUs on 2 nodes" in out
    status = Status.read(command.run)
    assert status is not None
    assert status.state == "finished"
    assert status.timings["machines"] > 1
