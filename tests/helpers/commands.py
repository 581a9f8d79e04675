"""`tailor` in a process of its own, forked from one that has imported torch and transformers already.

A new interpreter spends 8 seconds of CPU on imports before a command begins; this spends half a second. It is a real
process all the same: it has its own process id and, when asked for, its own session; it takes signals, and it can be
killed. `tailor` itself is imported again, so that disturbances (`tests/helpers/disturbance`) find its modules. What is
about a new interpreter, its environment or its imports starts `python -m tailor` instead (`tests/test_quickstart.py`,
`tests/cli/test_main.py`, `tests/onray/test_jobs.py`).
"""

from __future__ import annotations

import atexit
import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.helpers.hosts import PRELOADED

DISTURBANCE = Path(__file__).parent / "disturbance" / "sitecustomize.py"


class ForkedCommand:
    """What the tests use of `subprocess.Popen`, with its meaning there."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        start_new_session: bool = False,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        self._folder = tempfile.TemporaryDirectory(prefix="command-")
        self._files = [Path(self._folder.name) / name for name in ("out", "err")]
        self._process = context.Process(
            target=_run,
            args=(list(words), str(cwd), dict(env), [str(file) for file in self._files], start_new_session),
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("tailor", timeout or 0.0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (file.read_text() if file.exists() else "" for file in self._files)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def completed(
    words: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as `subprocess.run` does."""
    command = ForkedCommand(words, cwd=cwd, env=env)
    out, err = command.communicate(timeout)
    return subprocess.CompletedProcess(list(words), command.returncode or 0, out, err)


def _run(
    words: list[str], cwd: str, environment: dict[str, str], files: list[str], start_new_session: bool
) -> None:
    if start_new_session:
        os.setsid()
    for number, file in enumerate(files, 1):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["tailor", *words]
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tailor"]:
        del sys.modules[name]
    if environment.get("DISTURB"):
        spec = importlib.util.spec_from_file_location("sitecustomize", DISTURBANCE)
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    from tailor.cli.main import main

    try:
        code = main(words)
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    threading._shutdown()  # type: ignore[attr-defined]  # what an interpreter does before it ends
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
