"""Runs llama.cpp's Python programs: without secrets, network access, code of the model folder, or an end that never comes.

The converter loads tokenizers with `trust_remote_code=True`. A model folder may come from someone else, so the programs
see it without its Python code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tailor.layout import GGUF_FILE
from tailor.models.own_code import CONFIGS
from tailor.store import OBJECT

KEPT = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT"),
    *(
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
    ),
)
"""Environment variables that the programs get. Others may be secrets, or have them in their values."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
_SLOWEST = 5 * 2**20
"""Bytes per second that a program reads and writes at least. A slower one is stopped."""
_START = 600
"""Seconds that it may take beside that."""


def run(command: Sequence[str], folder: Path, size: int) -> tuple[int, str]:
    """Run a Python program. command: its words after the interpreter, with absolute paths. folder: where it runs, which must
    have no Python files, because `python -m` imports from there first. size: bytes that it reads.

    Returns its exit status and its output, or -1 and a message for a program that takes too long.
    """
    environment = {name: value for name in KEPT if (value := os.environ.get(name)) is not None}
    limit = _START + size // _SLOWEST
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env={**environment, **OFFLINE},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return -1, f"it did not end within {limit // 60} minutes"
    return done.returncode, done.stdout


def without_code(model: Path, to: Path) -> Path:
    """Make the folder `to` show the model in `model` without Python code, and without references to any. Returns `to`."""
    to.mkdir()
    for path in sorted(model.iterdir()):
        if not path.is_file() or path.suffix == ".py" or path.name == GGUF_FILE:
            continue
        config = OBJECT.read_path(path) if path.name in CONFIGS else {}
        if "auto_map" in config:
            del config["auto_map"]
            (to / path.name).write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
        else:
            (to / path.name).symlink_to(path.absolute())
    return to
