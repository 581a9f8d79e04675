"""`environment.json`: versions, hardware and git commit of a run. Environment variables are left out: they may contain secrets."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import tailor
from tailor import machine

PACKAGES = (
    "torch",
    "transformers",
    "ray",
    "peft",
    "bitsandbytes",
    "tokenizers",
    "datasets",
    "pyarrow",
    "numpy",
    "fsspec",
    "pydantic",
)


def describe() -> dict[str, Any]:
    """Versions, hardware and git commit of this process. GPUs are listed only if torch is already imported."""
    return {
        "tailor": tailor.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "hardware": _hardware(),
        "git": git_commit(Path.cwd()),
    }


def differences(before: dict[str, Any]) -> list[str]:
    """Message lines about the differences between the environment `before` and the present one; empty without any."""
    if not before:
        return []
    old, new = _flat(before), _flat(describe())
    lines = [f"  {key}: {old.get(key)} → {new.get(key)}" for key in new if old.get(key) != new.get(key)]
    return ["the environment has changed since the start of the run:", *lines] if lines else []


def _flat(environment: dict[str, Any]) -> dict[str, Any]:
    flat = {key: environment.get(key) for key in ("tailor", "python", "platform")}
    flat |= environment.get("packages", {})
    flat |= {key: value for key, value in environment.get("hardware", {}).items() if key != "gpus"}
    return flat | {"git commit": (environment.get("git") or {}).get("commit")}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _hardware() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    gpus = []
    if torch is not None and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": machine.cpu_name(),
        "cpus": machine.cpus(),
        "memory_bytes": machine.memory_bytes(),
        "gpus": gpus,
    }


def git_commit(folder: Path) -> dict[str, Any] | None:
    """The commit of the git checkout that contains `folder`, and whether tracked files differ from it; None outside git."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=5, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "changed": bool(git("status", "--porcelain", "--untracked-files=no"))}
