"""A cluster whose machines come when they are asked for: Ray's autoscaler, with machines that are processes of this one."""

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
"""Promised, and it never starts: Ray wants more memory."""
IN_VAIN = """\
from tailor.errors import ScaleError
from tailor.onray import autoscaler, cluster, placement
from tailor.spec.scale import Scale

joined = cluster.connect(Scale())
client = autoscaler._client()
for scale in (Scale(cpus_per_worker=3), Scale(accelerator="A100", placement_timeout=5)):
    try:
        placement.await_machines(scale, joined, print)
    except ScaleError as error:
        print(error)
    print(autoscaler._requested(autoscaler._report(client).cluster_resource_state.cluster_resource_constraints))
"""
HAS = "but the cluster's machine has 0 CPUs and 0 GPUs"


def test_a_run_goes_on_when_its_machine_comes(tmp_path: Path) -> None:
    with autoscaled(broken=BROKEN, large={"CPU": 2}) as environment:
        # The control: no machine has 3 CPUs, and the one with a GPU is too late.
        done = subprocess.run(
            [sys.executable, "-c", IN_VAIN],
            env={**os.environ, **environment, "PYTHONPATH": PATHS},
            capture_output=True,
            text=True,
            check=True,
        )
        never, nothing, waits, late, nothing_again = done.stdout.splitlines()
        assert never.startswith(f"1 worker with 3 CPUs each was asked for, {HAS}")
        asked = f"1 worker with one A100 each was asked for, {HAS}"
        assert waits == f"waiting up to 5.0 s for machines of the cluster's autoscaler: {asked}"
        assert late.startswith("no machines came within")
        assert f"{asked}; raise scale.placement_timeout; `ray status` says what machines wait for" in late
        assert nothing == nothing_again == "[]", "nothing stays asked for"

        command = Command(
            make_place(tmp_path),
            "run",
            ("train.steps=2", "evaluate.generation=null", "scale.cpus_per_worker=2"),
            environment,
        )
        out = command.finish().out
    assert "waiting up to 15 min 00 s for machines of the cluster's autoscaler: 1 worker with 2 CPUs" in out
    assert "the machines are there: the cluster's 2 machines have 2 CPUs" in out
    status = Status.read(command.run)
    assert status is not None
    assert status.state == "finished"
    assert status.timings["machines"] > 1
