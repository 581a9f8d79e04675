"""A Ray of tailor's own, torch's store and gloo listen on the loopback interface only, with all of their ports."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from tailor import machine
from tailor.onray.loopback import create_store, ray_on_loopback
from tests.helpers.killing import Command, ended, make_place
from tests.helpers.ports import listening

SLOW_STEPS = {"module": "tailor.train.step", "name": "StepRunner.step", "does": "wait", "call": 0}


def test_torchs_store_listens_on_loopback_only() -> None:
    me = {os.getpid()}
    before = listening(me)
    store = create_store("127.0.0.1", free_port(), 0, 1, timedelta(seconds=10))
    ours = {key: value for key, value in listening(me).items() if key not in before}
    assert list(ours.values()) == [True]
    store.set("key", "value")
    other = create_store("127.0.0.1", store.port, 1, 1, timedelta(seconds=10))
    assert other.get("key") == b"value"
    # The control: torch's own store is open to the network.
    plain = dist.TCPStore("127.0.0.1", 0, 1, True, timedelta(seconds=10))
    assert not all(value for key, value in listening(me).items() if key[1] == plain.port)


def free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_ray_starts_on_loopback_even_after_its_import(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import ray_constants, services

    monkeypatch.setenv(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "1")
    monkeypatch.setattr("ray._private.worker._global_node", None)
    with ray_on_loopback():
        assert services.get_node_ip_address() == "127.0.0.1"
        assert os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] == "0"
    assert ray_constants.ENABLE_RAY_CLUSTER is not False
    assert os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] == "1"


def test_the_loopback_interface_exists() -> None:
    assert set(machine.collectives_on_loopback().values()) <= set(psutil.net_if_addrs())


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the sessions of other processes")
def test_a_local_run_listens_on_loopback_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [name for name in psutil.net_if_addrs() if not name.startswith("lo")]
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, (others or ["lo"])[0])  # set for the clusters of the user
    command = Command(make_place(tmp_path), "run", ("scale.workers=2", "evaluate.generation=null"))
    process = command.start(SLOW_STEPS)
    command.wait_for(process, 2)
    members = {found.pid for found in psutil.process_iter() if os.getsid(found.pid) == process.pid}
    ports = listening(members)
    assert ended(process).code == 0
    assert len(ports) > 10
    assert [port for port, is_loopback in ports.items() if not is_loopback] == []
