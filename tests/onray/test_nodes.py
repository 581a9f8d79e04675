"""Two nodes with two CPUs each: where workers are placed, and what each node downloads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailor.store import Store
from tests.helpers.killing import PATHS, Command, ended, make_place
from tests.helpers.ray_clusters import Machines, cluster

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(900)]

SLOW_STEPS = {"module": "tailor.train.step", "name": "StepRunner.step", "does": "wait", "call": 0}


@pytest.fixture
def machines(s3: str) -> Iterator[Machines]:
    with cluster(2, 2, disturb=[SLOW_STEPS]) as found:
        yield found


def raylets_of_workers(machines: Machines) -> Counter[int]:
    """Number of training workers of each node of this cluster, by the process ID of its raylet."""
    token = machines.environment["RAY_AUTH_TOKEN"].encode()
    found: Counter[int] = Counter()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title, stat = (folder / "cmdline").read_bytes(), (folder / "stat").read_text()
            ours = token in (folder / "environ").read_bytes()
        except OSError:
            continue
        if ours and title.startswith(b"ray::") and b"TrainWorker" in title:
            found[int(stat.rpartition(")")[2].split()[1])] += 1
    return found


def test_workers_are_packed_or_spread_and_each_node_downloads_once(
    machines: Machines, s3: str, tmp_path: Path
) -> None:
    place = make_place(tmp_path)
    Store(s3).put_file(place / "rows.jsonl", "rows.jsonl")

    def placed(name: str, workers: int, placement: str) -> list[int]:
        command = Command(
            place,
            name,
            (
                "scale.cpus_per_worker=1",
                f"scale.workers={workers}",
                f"scale.placement={placement}",
                f"data.train=[{{path: {s3}/rows.jsonl}}]",
                f"data.store={s3}/tokens",
            ),
            machines.environment,
        )
        process = command.start()
        command.wait_for(process, 2)
        counts = sorted(raylets_of_workers(machines).values())
        result = ended(process)
        assert result.code == 0, result.out + result.err
        return counts

    assert placed("packed", 2, "pack") == [2]
    assert placed("spread", 2, "spread") == [1, 1]
    assert placed("all", 4, "pack") == [2, 2]
    for cache in machines.caches:
        copies = [path for path in (cache / "files").iterdir() if path.is_dir()]
        names = [path.name for copy in copies for path in copy.rglob("*") if path.is_file()]
        assert names, "each node has its own copy"
        assert len(names) == len(set(names)), "one copy for all of its workers"


PREPARE = """\
import time
from types import SimpleNamespace
import ray
from tailor.onray.prepare import ray_runner

def work(task):
    time.sleep(0.5)
    return ray.get_runtime_context().get_node_id()

ray.init(logging_level="ERROR", log_to_driver=False)
gpus = {node["NodeID"]: "GPU" in node["Resources"] for node in ray.nodes()}
for number in (2, 8):
    print(sum(gpus[node] for node in ray_runner(work, [SimpleNamespace(size=1)] * number)))
"""


def test_preparation_prefers_nodes_without_gpus() -> None:
    with cluster(0, 2, 2, gpus=(0, 1, 0)) as machines:
        environment = {**os.environ, **machines.environment, "PYTHONPATH": PATHS}
        command = [sys.executable, "-c", PREPARE]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    few, many = map(int, done.stdout.split())
    assert few == 0
    assert many > 0, "the control: other nodes are used when these are full"
