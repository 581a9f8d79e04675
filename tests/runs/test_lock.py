"""One process at a time works on a run; the second gets an error that names it, and a dead process blocks nobody."""

from __future__ import annotations

import errno
import fcntl
import getpass
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tailor.errors import StoreError
from tailor.layout import LOCK
from tailor.runs import lock as locking
from tailor.runs.lock import holder, is_held_by, lock
from tailor.store import Store

HOLD = (
    "import sys, time\nfrom tailor.runs.lock import lock\nfrom tailor.store import Store\n"
    "with lock(Store(sys.argv[1])):\n    print('in', flush=True)\n    time.sleep(60)"
)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that works on the run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_blocked_until_the_first_one_dies(
    other: subprocess.Popen[str], tmp_path: Path
) -> None:
    run = Store(str(tmp_path / "run"))
    assert holder(run) is not None
    with pytest.raises(StoreError) as caught, lock(run):
        pass
    told = rf"another process is working on the run at {run.url}: process {other.pid} of \w+ on .+, since \d{{4}}-.+"
    assert re.fullmatch(told, caught.value.message)
    other.kill()
    other.wait()
    assert holder(run) is None
    with lock(run) as attempt:
        assert is_held_by(run, attempt)
        with lock(Store(str(tmp_path / "another"))) as elsewhere:
            assert not is_held_by(run, elsewhere)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(locking, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(locking, "SETTLE_SECONDS", 0.05)


@pytest.fixture
def patient(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that does not run out during a test, however busy the machine is."""
    monkeypatch.setattr(locking, "LEASE_SECONDS", 60.0)


@pytest.fixture
def run() -> Store:
    return Store(f"memory://{uuid.uuid4().hex}/run")


@pytest.mark.usefixtures("patient")
def test_a_renewed_lease_blocks_others_and_is_released(run: Store) -> None:
    said: list[str] = []
    with lock(run) as attempt:
        began = time.monotonic()
        with pytest.raises(StoreError, match=f"process {os.getpid()} of"), lock(run, said.append):
            pass
        assert time.monotonic() - began < 30, "it was seen to live before the lease ran out"
        assert is_held_by(run, attempt)
        found = holder(run)
        assert found is not None
        assert found.attempt == attempt
    assert "to see whether it is still running" in said[0]
    assert not run.exists(LOCK)
    assert holder(run) is None


def left_behind(run: Store, **changed: Any) -> None:
    with lock(run):
        entry = run.read_json(LOCK)
    run.write_json(LOCK, entry | {"attempt": "dead", **changed})


@pytest.mark.usefixtures("patient")
def test_a_lease_of_a_dead_process_of_this_machine_is_taken_at_once(run: Store) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left_behind(run, pid=dead.pid)
    began = time.monotonic()
    with lock(run) as attempt:
        assert time.monotonic() - began < 30
        assert is_held_by(run, attempt)


@pytest.mark.usefixtures("quick")
def test_a_lease_of_another_machine_is_taken_when_it_has_expired(run: Store) -> None:
    left_behind(run, host="elsewhere")
    began = time.monotonic()
    with lock(run) as attempt:
        assert time.monotonic() - began > 0.5
        assert is_held_by(run, attempt)
    assert holder(run) is None


@pytest.mark.usefixtures("quick")
def test_an_attempt_that_lost_its_lease_no_longer_counts(run: Store) -> None:
    with lock(run) as attempt:
        run.write_json(LOCK, {**run.read_json(LOCK), "attempt": "another"})
        time.sleep(0.2)
        assert not is_held_by(run, attempt)
    assert run.read_json(LOCK)["attempt"] == "another", "the other's lease is not given back"


@pytest.mark.usefixtures("quick")
def test_a_host_name_that_two_machines_share_takes_no_lease(run: Store) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left_behind(run, pid=dead.pid, processes="another machine's")
    began = time.monotonic()
    with lock(run):
        assert time.monotonic() - began > 0.5


@pytest.mark.usefixtures("quick")
def test_an_attempt_that_slept_until_another_finished_has_no_lock(run: Store) -> None:
    with lock(run) as attempt:
        run.remove(LOCK)
        assert not is_held_by(run, attempt)
    assert is_held_by(run, ""), "a run without a lock needs none"


def test_checking_the_lock_blocks_nobody(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    run.append_text(LOCK, "")
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            holder(run)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            with lock(run):
                pass
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_a_user_without_a_name_and_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found")

    run = Store(str(tmp_path))
    monkeypatch.setattr(getpass, "getuser", nameless)
    with lock(run):
        found = holder(run)
        assert found is not None
        assert found.user == f"user {os.getuid()}"

    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(StoreError, match=r"cannot be locked: .*No locks available"), lock(run):
        pass


def test_the_holder_of_a_local_lock_is_on_disk_before_the_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS, the workers of other nodes would otherwise read the previous holder and give up."""
    flushed: list[str] = []
    monkeypatch.setattr(
        locking.os, "fsync", lambda file: flushed.append(Path(f"/proc/self/fd/{file}").read_text())
    )
    with lock(Store(str(tmp_path / "run"))) as attempt:
        assert any(attempt in content for content in flushed)
