"""The GPUs, and the kernels that training uses: bf16, flash attention, 4-bit weights, 8-bit optimizers.

They are tried in a process of their own, which a broken driver may end, and only on a machine with a GPU.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tailor.doctor.finding import GIB, Context, Finding
from tailor.spec.recipe import Recipe

SECONDS = 90.0
_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Devices of NVIDIA's driver, of AMD's, and of Windows' subsystem for Linux."""
PROBE = [sys.executable, "-m", "tailor.doctor.kernels"]


def check(context: Context) -> Iterator[Finding]:
    recipe = context.recipe
    if not has_device():
        if recipe is not None and recipe.scale.gpu is True and recipe.scale.address is None:
            yield Finding(
                "failed",
                "scale.gpu is true, but this machine has no GPU",
                "run on a machine or cluster with GPUs",
            )
        else:
            yield Finding("ok", "no GPU: runs on this machine train on its CPUs")
        return
    try:
        done = subprocess.run(PROBE, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        yield Finding(
            "failed", f"the GPU did not respond within {SECONDS:g} s", "see nvidia-smi and the kernel's log"
        )
        return
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding(
            "failed", f"the test of the GPU ended with code {done.returncode}: {last}", "see nvidia-smi"
        )
        return
    yield from findings(found, recipe)


def has_device() -> bool:
    """Whether a GPU's driver is on this machine."""
    return shutil.which("nvidia-smi") is not None or any(Path(device).exists() for device in _DEVICES)


def findings(found: dict[str, Any], recipe: Recipe | None) -> Iterator[Finding]:
    """What the output of `tailor.doctor.kernels` means for a recipe."""
    if not found["devices"]:
        yield Finding(
            "failed",
            f"there is a driver, but torch {found['torch']} sees no GPU: {found['error'] or 'no reason given'}",
            "install torch's build for this driver's CUDA version, or unset CUDA_VISIBLE_DEVICES",
        )
        return
    names = ", ".join(
        f"{one['name']} ({one['memory'] / GIB:.0f} GiB, {one['free'] / GIB:.0f} free)"
        for one in found["devices"]
    )
    workers = recipe.scale.max_workers if recipe is not None and recipe.scale.address is None else 1
    if workers > len(found["devices"]):
        yield Finding(
            "warning", f"{names}; the recipe has {workers} workers", "set scale.workers, or join a cluster"
        )
    else:
        yield Finding("ok", names)
    busy = [one["name"] for one in found["devices"] if one["free"] < 0.8 * one["memory"]]
    if busy:
        yield Finding(
            "warning", f"other processes use the memory of {', '.join(busy)}", "nvidia-smi lists them"
        )
    for name, error in found["kernels"].items():
        if error:
            yield Finding(
                "failed" if _is_needed(name, recipe) else "warning", f"{name}: {error}", _HINTS[name]
            )
    if works := [name for name, error in found["kernels"].items() if not error]:
        yield Finding("ok", f"work: {', '.join(works)}")


_HINTS = {
    "bf16": "set train.precision: fp16 or fp32 on GPUs older than Ampere",
    "flash attention": "attention falls back to slower kernels with more memory",
    "4-bit weights (nf4)": "install the bitsandbytes of constraints.txt, or leave model.quantize out",
    "8-bit optimizer": "install the bitsandbytes of constraints.txt, or set optim.optimizer: adamw",
}


def _is_needed(kernel: str, recipe: Recipe | None) -> bool:
    if recipe is None:
        return False
    return {
        "bf16": recipe.train.precision == "bf16",
        "4-bit weights (nf4)": recipe.model.quantize is not None,
        "8-bit optimizer": recipe.optim.optimizer.endswith("8bit"),
    }.get(kernel, False)
