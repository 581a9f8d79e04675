"""Where a run executes: in this process, on a local Ray instance, or on a Ray cluster."""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailor import machine
from tailor.errors import ScaleError
from tailor.onray.authentication import check_token, enable_token, refused
from tailor.onray.loopback import ray_on_loopback
from tailor.onray.nodes import draining
from tailor.plan import Hardware

if TYPE_CHECKING:
    from tailor.spec.scale import Scale

LOCAL = "local"
"""Ray's address for a new local instance."""

CONNECT_SECONDS = 10.0
"""Timeout of the TCP connection that checks whether a server answers."""

DETECT_SECONDS = 60
"""Maximum time for a node to start a process and detect its GPU."""

START_SECONDS = 60
"""Maximum time for Ray Train to schedule and start a worker group for which there is room."""

ACCELERATOR_PREFIX = "accelerator_type:"
"""Prefix of the Ray resource that names a node's GPU type, as in `accelerator_type:H100`."""

RAY_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the controller's poll interval; at the default, 2 s, reports wait
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # some clouds give a notice of 30 s only
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # the patch prints every line of the workers twice
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in a worker as in the driver
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # otherwise `uv run tailor` builds an environment per worker
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class Node:
    """Total resources of one node of the cluster, in use or free."""

    cpus: float
    gpus: float
    accelerator: str = ""
    """GPU type as Ray names it, such as `H100`; empty when Ray does not know it."""


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster or local Ray instance that this process is connected to."""

    is_local: bool
    """Started by this process on this machine. Workers may then have fractions of a CPU."""
    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        return sum(node.gpus for node in self.nodes)

    @property
    def name(self) -> str:
        """`this machine` or `the cluster`, for messages."""
        return "this machine" if self.is_local else "the cluster"

    @property
    def resources(self) -> str:
        """The total resources, for messages: `16 CPUs and 8 GPUs (8 A100) on 2 nodes`."""
        by_type: dict[str, float] = {}
        for node in self.nodes:
            if node.accelerator and node.gpus:
                by_type[node.accelerator] = by_type.get(node.accelerator, 0) + node.gpus
        types = ", ".join(f"{number:g} {name}" for name, number in sorted(by_type.items()))
        total = f"{count(self.cpus, 'CPU')} and {count(self.gpus, 'GPU')}"
        if types:
            total = f"{total} ({types})"
        return total if self.is_local else f"{total} on {count(len(self.nodes), 'node')}"

    def nodes_with(self, accelerator: str | None) -> tuple[Node, ...]:
        """The nodes that a recipe may train on: those with this GPU type, or all nodes if it is None."""
        return tuple(node for node in self.nodes if accelerator in (None, node.accelerator))


def address(scale: Scale) -> str | None:
    """Address of the Ray cluster to join, or None if none is set. Inside a Ray job it is the job's cluster."""
    return scale.address or os.environ.get("RAY_ADDRESS") or ("auto" if in_job() else None)


def in_job() -> bool:
    """Whether this process is the command of a Ray job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def in_process(scale: Scale) -> bool:
    """Whether training runs in this process: one worker, and no cluster to join. This saves 15 s of start-up."""
    return scale.max_workers == 1 and address(scale) is None


class BackgroundStart:
    """Starts or joins Ray in a thread while data is prepared. A context manager that disconnects at the end."""

    def __init__(self, scale: Scale, *, verbose: bool = False) -> None:
        import_ray(scale, verbose=verbose)
        self.seconds = 0.0
        self._outcome: Cluster | BaseException | None = None
        self._connected = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._start, args=(scale, verbose), name="ray", daemon=True)
        self._thread.start()

    def wait(self) -> Cluster:
        """Wait for the connection and return the cluster. Raises the error of `connect`."""
        self._connected.wait()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    def __enter__(self) -> BackgroundStart:
        return self

    def __exit__(self, *exception: object) -> None:
        import ray

        self._connected.wait()
        ray.shutdown()
        self._closed.set()
        self._thread.join()

    def _start(self, scale: Scale, verbose: bool) -> None:
        began = time.monotonic()
        try:
            self._outcome = connect(scale, verbose=verbose)
        except BaseException as error:  # `wait` raises it in the caller's thread
            self._outcome = error
        self.seconds = time.monotonic() - began
        self._connected.set()
        # Keep the thread alive: the kernel ends Ray's processes together with the thread that started them.
        self._closed.wait()


def connect(scale: Scale, *, verbose: bool = False) -> Cluster:
    """Join the recipe's Ray cluster, or start a local instance. ScaleError when the cluster cannot be reached."""
    import_ray(scale, verbose=verbose)
    import ray

    target = address(scale) or LOCAL
    options: dict[str, Any] = {"log_to_driver": verbose}
    if not verbose:
        options["logging_level"] = logging.ERROR
        options["logging_config"] = ray.LoggingConfig(log_level="ERROR")
    if target == LOCAL:
        options |= {"num_cpus": machine.cpus(), "include_dashboard": False}
    try:
        host, colon, port = target.removeprefix("ray://").rpartition(":")
        if colon and port.isdigit():
            check_port(host.strip("[]"), int(port))
            if "://" not in target:
                check_token(target)
        with ray_on_loopback() if target == LOCAL else nullcontext():
            ray.init(address=target, **options)
    except ray.exceptions.AuthenticationError as error:
        raise refused(f"the Ray cluster at {target}", _first_line(error).split(". ")[0]) from error
    except (OSError, ValueError, RuntimeError) as error:
        if target == LOCAL:
            raise
        raise ScaleError(
            f"cannot connect to the Ray cluster at {target}: {_first_line(error)}",
            hint="start a cluster with `ray start --head`; to run on this machine, remove scale.address and "
            "unset RAY_ADDRESS",
        ) from error
    return current_cluster(is_local=target == LOCAL)


def check_port(host: str, port: int) -> None:
    """Check that a server listens at the port. OSError if not. Ray itself needs minutes to report that."""
    socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()


def current_cluster(*, is_local: bool) -> Cluster:
    """The cluster that this process is connected to, with the nodes that are alive now and are not being drained."""
    import ray

    leaving = frozenset() if is_local else draining()
    nodes = [
        node["Resources"]
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"] and node["NodeID"] not in leaving
    ]
    return Cluster(
        is_local, tuple(Node(n.get("CPU", 0.0), n.get("GPU", 0.0), accelerator_type(n)) for n in nodes)
    )


def accelerator_type(resources: dict[str, float]) -> str:
    """The GPU type among the Ray resources of a node or worker; empty if there is none."""
    prefix = ACCELERATOR_PREFIX
    return next((name.removeprefix(prefix) for name in resources if name.startswith(prefix)), "")


def accelerator_resource(accelerator: str | None) -> dict[str, float]:
    """The Ray resource that limits a worker to nodes with this GPU type.

    Every such node offers 1 of it, independent of its number of GPUs; a worker requests 0.001.
    """
    return {f"{ACCELERATOR_PREFIX}{accelerator}": 0.001} if accelerator is not None else {}


def hardware(
    scale: Scale, cluster: Cluster | None, report: Callable[[str], None] = lambda _: None
) -> Hardware:
    """Hardware of one worker: of this process when `cluster` is None, else of a node of the cluster.

    If other jobs use the cluster, waits for a free GPU or CPU and reports that it waits. ScaleError when none becomes
    free within `scale.placement_timeout`, or no node has the GPU type `scale.accelerator`.
    """
    if scale.accelerator is not None and cluster is None:
        raise ScaleError(
            f"scale.accelerator: {scale.accelerator} needs a cluster, but the run uses this machine only",
            hint="remove scale.accelerator, or run on a cluster",
        )
    if scale.accelerator is not None and cluster is not None and not cluster.nodes_with(scale.accelerator):
        raise ScaleError(
            f"no node has a GPU of type {scale.accelerator}: {cluster.name} has {cluster.resources}",
            hint=f"set scale.accelerator to a GPU type that {cluster.name} has, or remove it",
        )
    if cluster is None or cluster.is_local:
        return _detect(scale.gpu is not False, scale.max_workers)
    import ray

    nodes = cluster.nodes_with(scale.accelerator)
    gpus = sum(node.gpus for node in nodes) if scale.gpu is not False else 0
    # Head nodes are often configured with 0 CPUs, so that nothing is placed on them.
    usable = sum(1 for node in nodes if node.gpus >= 1 or (node.cpus >= 1 and not gpus))
    workers_per_node = math.ceil(scale.max_workers / max(1, usable))
    resource = "GPU" if gpus else "CPU"
    detect = ray.remote(
        num_cpus=0 if gpus else 1,
        num_gpus=1 if gpus else 0,
        resources=accelerator_resource(scale.accelerator),
    )(_detect)
    task = detect.remote(bool(gpus), workers_per_node)
    busy = f"other jobs use {cluster.name}, which has {cluster.resources}"
    try:
        if not ray.wait([task], timeout=DETECT_SECONDS)[0]:
            report(f"waiting for a free {resource}: {busy}")
        detected: Hardware = ray.get(task, timeout=scale.placement_timeout + DETECT_SECONDS)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(task)
        raise ScaleError(
            f"no {resource} became free within {scale.placement_timeout} s: {busy}",
            hint="wait for the other jobs to end, or raise scale.placement_timeout",
        ) from None
    return detected


def _detect(gpu: bool, workers: int) -> Hardware:
    """Hardware of one of the `workers` workers on the node where this function runs."""
    if gpu:
        import torch

        if torch.cuda.is_available():
            memory = torch.cuda.get_device_properties(0).total_memory
            return Hardware("cuda", memory, torch.cuda.get_device_capability(0) >= (8, 0))
    return Hardware("cpu", machine.memory_bytes() // workers, machine.has_fast_bf16())


def threads(cpus: float) -> int:
    """Number of compute threads of a worker with `cpus` CPUs. OMP_NUM_THREADS, if set, has priority."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    return int(chosen) if chosen.isdigit() and int(chosen) > 0 else max(1, int(cpus))


def import_ray(scale: Scale, *, verbose: bool = False) -> None:
    """Import Ray with the settings of `RAY_ENVIRONMENT`. Environment variables that the user has set are kept."""
    if "ray" not in sys.modules:  # Ray reads its environment once, at import
        start = max(START_SECONDS, scale.placement_timeout)
        for name, value in {**RAY_ENVIRONMENT, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(start)}.items():
            os.environ.setdefault(name, value)
        if address(scale) not in (None, LOCAL):
            enable_token()
        # A random token known to this process only: otherwise any user of the machine can run code through its Ray.
        if address(scale) in (None, LOCAL) and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray.train

    if not verbose:  # after the import, because Ray configures its loggers there
        for name in ("ray", "ray.train", "ray.data", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
    # Ray prints the last lines of a dead node's log into the driver's output, whatever log_to_driver and the levels are.
    ray._private.worker._worker_logs_enabled = verbose


def count(number: float, noun: str) -> str:
    """A number with its noun: 1 CPU, 2 CPUs."""
    return f"{number:g} {noun}" + ("" if number == 1 else "s")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
