"""Hardware of this machine: CPUs, memory, bf16 support. Read from the kernel, with the standard library only."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cpus() -> int:
    """Number of CPUs that this process may use: its CPU affinity, capped by the cgroup's CPU quota (v2 or v1)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _words(CGROUP / "cpu.max") or _words(CGROUP / "cpu/cpu.cfs_quota_us") + _words(
        CGROUP / "cpu/cpu.cfs_period_us"
    )
    if len(quota) == 2 and quota[0].isdigit():
        allowed = min(allowed, -(-int(quota[0]) // int(quota[1])))
    return max(1, allowed)


def memory_bytes() -> int:
    """Memory of this machine in bytes, capped by the cgroup's memory limit (v2 or v1)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in (CGROUP / "memory.max", CGROUP / "memory/memory.limit_in_bytes"):
        limit = _words(file)
        if limit and limit[0].isdigit():
            total = min(total, int(limit[0]))
    return total


def cpu_name() -> str:
    """The CPU's model name, for reports."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware: AMX or AVX512-BF16 on x86, BF16 on Arm."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return bool(flags & {"amx_bf16", "avx512_bf16", "bf16"})


def wait_without_spinning() -> None:
    """Make OpenMP threads sleep while they wait (`OMP_WAIT_POLICY=PASSIVE`). Call it before torch is imported.

    By default they spin, which always costs CPU time, and most of the speed when other threads need the same CPUs:
    a small model on two busy cores trains at 2,000 tokens/s with spinning threads and at 11,800 with sleeping ones.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


COLLECTIVE_TIMEOUT = timedelta(hours=6)
"""Timeout of collective operations. The other workers wait while rank 0 writes, hashes and uploads a large artifact.
With Ray's default of half an hour, such a run would fail at every attempt. Health checks detect dead workers."""


def collectives_on_loopback() -> dict[str, str]:
    """Environment variables with which gloo and NCCL listen on the loopback interface only: for workers of one machine."""
    names = [name for _, name in socket.if_nameindex()]
    interface = "lo0" if "lo0" in names else "lo"  # macOS, Linux
    return {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, and restore their previous values at the end."""
    previous = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _cpuinfo(key: str) -> str:
    file = Path("/proc/cpuinfo")
    if file.is_file():
        for line in file.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def _words(file: Path) -> list[str]:
    """The words of a file; empty when it cannot be read, for example because the other cgroup version is in use."""
    try:
        return file.read_text().split()
    except OSError:
        return []
