"""The tests with the marker `gpu`, as a part of `gpu.py`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
NO_TESTS = 5
"""pytest's exit code on a machine without a GPU, where they are deselected."""


def tests(folder: Path, device: torch.device) -> Iterator[dict[str, Any]]:
    """pytest's last line, and the names of the tests that failed. RuntimeError if one did."""
    files = sorted(
        str(file) for file in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in file.read_text()
    )
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    failed = [line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    yield {"result": lines[-1], "failed": failed}
    if done.returncode not in ((0,) if device.type == "cuda" else (0, NO_TESTS)):
        raise RuntimeError(lines[-1])
