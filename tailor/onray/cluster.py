"""Which machines a run uses: this process alone, a Ray of this machine's own, or a cluster that is joined."""

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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailor import machine
from tailor.errors import ScaleError
from tailor.plan import Hardware

if TYPE_CHECKING:
    from tailor.spec.scale import Scale

OWN = "local"
"""The address that stands for a Ray of this machine's own."""

KNOCK_SECONDS = 10.0

DETECT_SECONDS = 60
"""How long a machine may take to start a process and look at its GPU."""

START_SECONDS = 60
"""How long a group of workers may take to get its place, once there was room for it."""

KIND = "accelerator_type:"
"""Ray's name of the resource that tells a machine's kind of GPU."""

TUNED = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the controller's poll: 2 s by default, and each report waits for it
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it doubles what workers print
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in a worker as in the driver
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else `uv run tailor` builds an environment per worker
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster has in all, used or free."""

    cpus: float
    gpus: float
    accelerator: str = ""
    """The kind of its GPUs, as Ray names it."""


@dataclass(frozen=True)
class Cluster:
    """A Ray that this process is connected to."""

    own: bool
    """Started by this process, on this machine; its workers share the CPUs when there are more workers."""
    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        return sum(node.gpus for node in self.nodes)

    @property
    def has(self) -> str:
        """What it has, in words: the cluster's 2 machines have 16 CPUs and 8 GPUs (8 A100)."""
        machines = "this machine has" if self.own else "the cluster's machine has"
        if not self.own and len(self.nodes) != 1:
            machines = f"the cluster's {count(len(self.nodes), 'machine')} have"
        kinds: dict[str, float] = {}
        for node in self.nodes:
            if node.accelerator and node.gpus:
                kinds[node.accelerator] = kinds.get(node.accelerator, 0) + node.gpus
        which = ", ".join(f"{number:g} {kind}" for kind, number in sorted(kinds.items()))
        has = f"{machines} {count(self.cpus, 'CPU')} and {count(self.gpus, 'GPU')}"
        return f"{has} ({which})" if which else has

    def of_kind(self, accelerator: str | None) -> tuple[Node, ...]:
        """The machines that a recipe may train on: those with such GPUs, or all of them."""
        return tuple(node for node in self.nodes if accelerator in (None, node.accelerator))


def address(scale: Scale) -> str | None:
    """The Ray to join, or None when nothing says one. Inside a Ray job it is the job's cluster."""
    inside_job = "auto" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else None
    return scale.address or os.environ.get("RAY_ADDRESS") or inside_job


def in_process(scale: Scale) -> bool:
    """Whether training runs in this very process: one worker, and no cluster to join. Saves 15 s of start-up."""
    return scale.max_workers == 1 and address(scale) is None


class Starting:
    """A Ray that is started or joined in the background, while data is prepared. A context: it is left at the end."""

    def __init__(self, scale: Scale, *, verbose: bool = False) -> None:
        import_ray(scale, verbose=verbose)
        self.seconds = 0.0
        self._outcome: Cluster | BaseException | None = None
        self._there = threading.Event()
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._start, args=(scale, verbose), name="ray", daemon=True)
        self._thread.start()

    def wait(self) -> Cluster:
        """The cluster, once it is there. Raises what `connect` raised."""
        self._there.wait()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    def __enter__(self) -> Starting:
        return self

    def __exit__(self, *exception: object) -> None:
        import ray

        self._there.wait()
        ray.shutdown()
        self._leave.set()
        self._thread.join()

    def _start(self, scale: Scale, verbose: bool) -> None:
        began = time.monotonic()
        try:
            self._outcome = connect(scale, verbose=verbose)
        except BaseException as error:  # `wait` raises it in the caller's thread
            self._outcome = error
        self.seconds = time.monotonic() - began
        self._there.set()
        self._leave.wait()  # the system ends Ray's processes with the thread that started them


def connect(scale: Scale, *, verbose: bool = False) -> Cluster:
    """Join the recipe's cluster, or start a Ray here. ScaleError when the cluster cannot be reached."""
    import_ray(scale, verbose=verbose)
    import ray

    target = address(scale) or OWN
    options: dict[str, Any] = {"log_to_driver": verbose}
    if not verbose:
        options["logging_level"] = logging.ERROR
        options["logging_config"] = ray.LoggingConfig(log_level="ERROR")
    if target == OWN:
        options |= {"num_cpus": machine.cpus(), "include_dashboard": False}
    try:
        host, found, port = target.removeprefix("ray://").rpartition(":")
        if found and port.isdigit():
            knock(host.strip("[]"), int(port))
        ray.init(address=target, **options)
    except (OSError, ValueError, RuntimeError) as error:
        if target == OWN:
            raise
        raise ScaleError(
            f"no Ray cluster answers at {target}: {_first_line(error)}",
            hint="start one with `ray start --head`, or leave scale.address and RAY_ADDRESS away to run here",
        ) from error
    return describe(own=target == OWN)


def knock(host: str, port: int) -> None:
    """OSError when nothing listens there. Ray itself takes minutes to say so."""
    socket.create_connection((host, port), timeout=KNOCK_SECONDS).close()


def describe(*, own: bool) -> Cluster:
    """The cluster that this process is connected to."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return Cluster(own, tuple(Node(n.get("CPU", 0.0), n.get("GPU", 0.0), accelerator(n)) for n in nodes))


def accelerator(resources: dict[str, float]) -> str:
    """The kind of GPU among a machine's or a worker's resources."""
    return next((name.removeprefix(KIND) for name in resources if name.startswith(KIND)), "")


def kind(accelerator: str | None) -> dict[str, float]:
    """What keeps a worker to such GPUs. A machine offers 1 of it, whatever number it has."""
    return {f"{KIND}{accelerator}": 0.001} if accelerator is not None else {}


def hardware(scale: Scale, cluster: Cluster | None, tell: Callable[[str], None] = lambda _: None) -> Hardware:
    """What one worker will run on: of this process when `cluster` is None, else of a machine of the cluster.

    Waits for others to leave one, and tells so. ScaleError when none does, or there is no GPU of the kind that
    is asked for.
    """
    if scale.accelerator is not None and (cluster is None or not cluster.of_kind(scale.accelerator)):
        raise ScaleError(
            f"a GPU of kind {scale.accelerator} was asked for, but "
            + (cluster.has if cluster is not None else "the run joins no cluster"),
            hint="set scale.accelerator to a kind that is there, or leave it away"
            if cluster is not None
            else "leave scale.accelerator away, or run on a cluster",
        )
    if cluster is None or cluster.own:
        return _detect(scale.gpu is not False, scale.max_workers)
    import ray

    nodes = cluster.of_kind(scale.accelerator)
    gpus = sum(node.gpus for node in nodes) if scale.gpu is not False else 0
    # A head often has no CPUs to give.
    usable = sum(1 for node in nodes if node.gpus >= 1 or (node.cpus >= 1 and not gpus))
    workers_per_node = math.ceil(scale.max_workers / max(1, usable))
    resource = "GPU" if gpus else "CPU"
    detect = ray.remote(
        num_cpus=0 if gpus else 1, num_gpus=1 if gpus else 0, resources=kind(scale.accelerator)
    )(_detect)
    asked = detect.remote(bool(gpus), workers_per_node)
    try:
        if not ray.wait([asked], timeout=DETECT_SECONDS)[0]:
            tell(f"waiting for a {resource} that no other job uses: {cluster.has}")
        found: Hardware = ray.get(asked, timeout=scale.placement_timeout + DETECT_SECONDS)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(asked)
        raise ScaleError(
            f"no {resource} was free within {scale.placement_timeout} s; {cluster.has}, all in use",
            hint="wait for the cluster's other jobs to end, or raise scale.placement_timeout",
        ) from None
    return found


def _detect(gpu: bool, workers: int) -> Hardware:
    if gpu:
        import torch

        if torch.cuda.is_available():
            memory = torch.cuda.get_device_properties(0).total_memory
            return Hardware("cuda", memory, torch.cuda.get_device_capability(0) >= (8, 0))
    return Hardware("cpu", machine.memory_bytes() // workers, machine.has_fast_bf16())


def threads(cpus: float) -> int:
    """Arithmetic threads of a worker with so many CPUs. What the user set in OMP_NUM_THREADS stands."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    return int(chosen) if chosen.isdigit() and int(chosen) > 0 else max(1, int(cpus))


def import_ray(scale: Scale, *, verbose: bool = False) -> None:
    """Import Ray as a run needs it. What the user set in the environment stands."""
    if "ray" not in sys.modules:  # it reads its environment once, at import
        start = max(START_SECONDS, scale.placement_timeout)
        for name, value in {**TUNED, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(start)}.items():
            os.environ.setdefault(name, value)
        # A secret of this process alone, so that nobody else on the machine can run code through its Ray.
        if address(scale) in (None, OWN) and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray.train  # noqa: F401

    if not verbose:  # the import sets up loggers of its own
        for name in ("ray", "ray.train", "ray.data", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)


def count(number: float, noun: str) -> str:
    """1 CPU, 2 CPUs."""
    return f"{number:g} {noun}" + ("" if number == 1 else "s")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
