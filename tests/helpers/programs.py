"""llama.cpp's Python programs, forked from a process that has imported torch and transformers already (`commands`).

It takes the place of `tailor.export.gguf.programs.run`. A new interpreter spends 8 seconds of CPU on its imports, this one.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.hosts import PRELOADED


def run_forked(command: Sequence[str], folder: Path, size: int) -> tuple[int, str]:
    """The exit status and the output of a Python program. command: its words after the interpreter."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with tempfile.NamedTemporaryFile("r", prefix="program-", errors="replace") as out:
        process = context.Process(target=_run, args=(list(command), str(folder), out.name))
        process.start()
        process.join()
        return process.exitcode or 0, out.read()


def _run(command: list[str], folder: str, out: str) -> None:
    descriptor = os.open(out, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
    os.chdir(folder)
    kind, code, *words = command
    sys.argv = [kind, *words]
    status = 0
    try:
        if kind == "-c":
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module(code, run_name="__main__", alter_sys=True)
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
