"""Runs Python programs around llama.cpp: without secrets, network access, or code of the model folder.

The converter loads tokenizers with `trust_remote_code=True`. A model folder may come from someone else, so the programs
see it without its Python code.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tailor.layout import GGUF_FILE
from tailor.models.own_code import CONFIGS
from tailor.printable import printable
from tailor.store import OBJECT

KEPT = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT"),
    *(
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "CUDA_VISIBLE_DEVICES",
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


def of_file(program: Path) -> tuple[str, ...]:
    """The words of a command for a program's file. Not run as a file, whose folder's modules would hide those of Python."""
    return "-c", "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')", str(program)


def run(command: Sequence[str], folder: Path, size: int) -> tuple[int, str]:
    """Run a Python program. command: its words after the interpreter, with absolute paths. folder: where it runs, which must
    have no Python files, because Python imports from there first. size: bytes that it reads.

    Returns its exit status and its output, or 1 and a message for a program that takes too long.
    """
    limit = _START + size // _SLOWEST
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return 1, f"it did not end within {limit // 60} minutes"
    return done.returncode, done.stdout


@contextmanager
def running(command: Sequence[str], folder: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program, with pipes from here to its stdin and from its stdout, which ends with the context.

    command, folder: as for `run`. log: the file that gets its messages.
    """
    with log.open("wb") as messages:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
        )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ending(status: int, output: str) -> str:
    """Why a program ended that should not have: its last message, and the signal that ended it, if one did."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    message = printable(lines[-1])[:200] if lines else "it ended without a message"
    if status == -signal.SIGKILL:
        return "it was killed (SIGKILL), as a system does that has no memory left"
    return message if status >= 0 else f"{message} ({signal.Signals(-status).name})"


def _environment() -> dict[str, str]:
    return {**{name: value for name in KEPT if (value := os.environ.get(name)) is not None}, **OFFLINE}


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
