"""Limits a Ray instance of tailor's own, and the process groups of its workers, to the loopback interface."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from tailor import machine


@contextmanager
def ray_on_loopback() -> Iterator[None]:
    """A Ray instance that starts inside listens on the loopback address only, with all of its ports.

    By default it listens on all interfaces. `_node_ip_address="127.0.0.1"` does not help: Ray replaces a loopback
    address by the machine's. This setting, which Ray has for Windows and macOS, works everywhere.
    """
    from ray._private import ray_constants

    enabled = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        # Ray's processes inherit the variable. It is no longer set when this process starts or joins a cluster later.
        with machine.environment({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled


def torch_config(timeout_s: int) -> Any:
    """Ray Train's TorchConfig for workers on one machine: torch's store, gloo and NCCL listen on loopback only."""
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    class LoopbackBackend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(_listen_on_loopback)
            super().on_start(worker_group, backend_config)

    class LoopbackConfig(TorchConfig):
        @property
        def backend_cls(self) -> type[_TorchBackend]:
            return LoopbackBackend

    return LoopbackConfig(timeout_s=timeout_s)


def _listen_on_loopback() -> None:
    """Prepare a worker's process. Called before its process group is initialized."""
    os.environ.update(machine.collectives_on_loopback())
    # By its name, because `torch.distributed.rendezvous` is also a function.
    vars(importlib.import_module("torch.distributed.rendezvous"))["_create_c10d_store"] = create_store


def create_store(
    host: str, port: int, rank: int, world_size: int, timeout: timedelta, use_libuv: bool = True
) -> Any:
    """torch's TCPStore, whose server, on rank 0, listens at `host` only. torch itself listens on all interfaces."""
    from torch.distributed import TCPStore

    options: dict[str, Any] = {}
    if rank == 0:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = socket.create_server((host, port), family=family)
        options = {"is_master": True, "master_listen_fd": server.detach()}  # the store closes it
    return TCPStore(host, port, world_size, timeout=timeout, use_libuv=use_libuv, **options)
