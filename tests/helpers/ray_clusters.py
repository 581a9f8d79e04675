"""A Ray cluster of several machines on this one, in a process of its own, with a job server that wants a token."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.killing import PATHS

SERVE = """\
import json, os, sys, time
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION as PREEMPTION
cluster, nodes = Cluster(), []
for node in json.loads(sys.argv[1]):
    os.environ["TAILOR_CACHE"] = node.pop("cache")
    nodes.append(cluster.add_node(**node))
print(json.dumps([cluster.webui_url, cluster.address]), flush=True)
for line in sys.stdin:
    number, *seconds = map(int, line.split())
    if seconds:
        deadline = int(1000 * (time.time() + seconds[0]))
        client = GcsClient(address=cluster.address)
        accepted, why = client.drain_node(nodes[number].node_id, PREEMPTION, "spot", deadline)
        assert accepted, why
    else:
        cluster.remove_node(nodes[number], allow_graceful=False)
    print("done", flush=True)
cluster.shutdown()
"""
MEMORY = 80 << 20


@dataclass
class Machines:
    """A running cluster."""

    url: str
    """Of its job server."""
    environment: dict[str, str]
    """With which commands reach it."""
    metrics_ports: list[int]
    """Of each machine's metrics, as Prometheus reads them."""
    caches: list[Path]
    """Each machine's cache of remote files."""
    _process: subprocess.Popen[str]

    def kill(self, number: int) -> None:
        """Kill a machine, as a power cut would. 0 is the head."""
        self._send(f"{number}")

    def drain(self, number: int, seconds: int) -> None:
        """Announce that a machine will be preempted after so many seconds, as clouds do. It isn't killed then."""
        self._send(f"{number} {seconds}")

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def metrics(self) -> str:
        """Those of all machines that answer."""
        found = ""
        for port in self.metrics_ports:
            with (
                suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer,
            ):
                found += answer.read().decode()
        return found


@contextmanager
def cluster(
    *cpus: int, gpus: Sequence[int] = (), disturb: object = (), own_addresses: bool = False
) -> Iterator[Machines]:
    """Machines with so many CPUs each, and so many GPUs in name; the first is the head.

    own_addresses: the others have the addresses 127.0.0.2, 127.0.0.3 ...; otherwise all have the same one.
    """
    ports = [_free_port() for _ in cpus]
    agents = [_free_port() for _ in cpus]
    head = {"include_dashboard": True, "dashboard_port": _free_port()}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        nodes = [
            {
                "cache": f"{folder}/cache-{at}",
                "num_cpus": number,
                "num_gpus": gpus[at] if gpus else 0,
                "object_store_memory": MEMORY,
                "metrics_export_port": ports[at],
                "dashboard_agent_listen_port": agents[at],
                # Each machine has its own folder: two agents would unpack a job's files over each other.
                **({"temp_dir": f"{folder}/{at}"} if at else head),
                **({"node_ip_address": f"127.0.0.{at + 1}"} if at and own_addresses else {}),
            }
            for at, number in enumerate(cpus)
        ]
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, json.dumps(nodes)],
            cwd=folder,
            env={
                **os.environ,
                **token,
                "RAY_TMPDIR": folder,
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
                "PYTHONPATH": PATHS,
                "DISTURB": json.dumps(disturb),
                "OMP_NUM_THREADS": "1",
                "COLUMNS": "100",
                "HF_HUB_OFFLINE": "1",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_metrics_report_interval_ms": "1000",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, "the cluster did not start"
            url, address = json.loads(line)
            caches = [Path(str(node["cache"])) for node in nodes]
            yield Machines(f"http://{url}", {**token, "RAY_ADDRESS": address}, ports, caches, process)
        finally:
            process.communicate()  # the end of its input ends it
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


HEAD_ID = "f" * 51 + "0" * 5
"""The node of the head, as Ray's provider of fake machines counts them."""


@contextmanager
def autoscaled(**groups: dict[str, float]) -> Iterator[dict[str, str]]:
    """A head without CPUs, whose autoscaler brings one machine at most of each group, with such resources.

    Gives the environment with which commands reach it. (Ray's own AutoscalingCluster ends every Ray of the machine.)
    """
    from ray.util import get_node_ip_address

    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    port = _free_port()
    address = f"{get_node_ip_address()}:{port}"
    machines = {
        name: {"resources": {"object_store_memory": MEMORY, **resources}, "max_workers": 1, "node_config": {}}
        for name, resources in groups.items()
    }
    commands = ("setup_commands", "initialization_commands", "head_setup_commands", "worker_setup_commands")
    commands += ("head_start_ray_commands", "worker_start_ray_commands")
    config = {
        **{name: [] for name in commands},
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "cluster_name": "fake",
        "max_workers": len(groups),
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "max_workers": 0, "node_config": {}},
            **machines,
        },
    }
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        words = [
            "start",
            "--head",
            "--block",
            f"--port={port}",
            "--disable-usage-stats",
            "--num-cpus=0",
        ]
        words += ["--include-dashboard=false", f"--object-store-memory={MEMORY}"]
        words += [f"--autoscaling-config={folder}/config.json"]
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words],
            env={
                **os.environ,
                **token,
                "RAY_TMPDIR": folder,
                "RAY_FAKE_CLUSTER": "1",
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "PYTHONPATH": PATHS,
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "RAY_USAGE_STATS_ENABLED": "0",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _await_port(process, port)
            yield {**token, "RAY_ADDRESS": address}
        finally:
            _kill_all_with(token["RAY_AUTH_TOKEN"])
            process.wait()


def _await_port(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the cluster did not start"
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.2)
    raise AssertionError("the cluster did not start")


def _kill_all_with(token: str) -> None:
    """The machines that an autoscaler made are in no process group of ours."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(folder.name) != os.getpid() and token.encode() in (folder / "environ").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
