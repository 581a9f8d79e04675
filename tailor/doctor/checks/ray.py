"""Ray: the cluster that the recipe joins, or what a local instance needs. Nothing is started."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from tailor import machine
from tailor.doctor.finding import GIB, Context, Finding
from tailor.onray import cluster
from tailor.spec.scale import Scale

SHARED = Path("/dev/shm")
MIN_SHARED = 1 * GIB


def check(context: Context) -> Iterator[Finding]:
    scale = context.recipe.scale if context.recipe is not None else Scale()
    target = cluster.address(scale)
    if target is not None and target != cluster.LOCAL:
        yield _reached(target, offline=context.offline)
        return
    if context.recipe is not None and cluster.in_process(scale):
        yield Finding("ok", "not needed: one worker, which trains in the command's own process")
        return
    yield from _startable()
    if scale.max_workers > machine.cpus():
        yield Finding(
            "warning",
            f"{scale.max_workers} workers share {machine.cpus()} CPUs",
            "lower scale.workers, or join a cluster with scale.address",
        )


def _reached(target: str, *, offline: bool) -> Finding:
    host, colon, port = target.removeprefix("ray://").rpartition(":")
    if offline or not (colon and port.isdigit()):
        return Finding("ok", f"the recipe joins the cluster at {target}; not tried")
    try:
        cluster.check_port(host.strip("[]"), int(port))
    except OSError as error:
        return Finding(
            "failed",
            f"no Ray cluster answers at {target}: {error}",
            "start one with `ray start --head`; to run on this machine, remove scale.address and unset RAY_ADDRESS",
        )
    return Finding("ok", f"a server answers at {target}")


def _startable() -> Iterator[Finding]:
    found = find_spec("ray")
    folder = Path(found.origin).parent if found is not None and found.origin else None
    raylet = folder / "core" / "src" / "ray" / "raylet" / "raylet" if folder else None
    if raylet is None or not os.access(raylet, os.X_OK):
        yield Finding(
            "failed", "Ray's programs are missing or not executable", "pip install --force-reinstall ray"
        )
        return
    free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else 0
    if free < MIN_SHARED:
        yield Finding(
            "warning",
            f"{SHARED} has {free / GIB:.1f} GiB: Ray keeps objects on the disk instead",
            "in a container, set --shm-size=2g",
        )
    else:
        yield Finding("ok", f"a local instance can start; {SHARED} has {free / GIB:.1f} GiB")
