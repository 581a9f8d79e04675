"""What a killed process leaves outside its run folder is swept at the next start; what a living one uses stays."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tailor.store import Store
from tailor.store import scratch as scratches
from tailor.store.publication import Publication
from tailor.store.scratch import Claim, lock_of, process_folder, scratch, sweep
from tailor.track.tensorboard import TensorBoard
from tests.helpers.http_server import web
from tests.helpers.stores import commit


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files, a cache, and files of a user in both."""
    for name in ("tmp", "cache/files", "cache/uploads"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scratches, "_of_process", {})
    for name in ("tmp/tailor-scratch-notes", "tmp/mine.lock", "cache/uploads/mine.txt", "cache/files/mine"):
        (tmp_path / name).write_text("mine")
    return tmp_path


def files(folder: Path) -> set[str]:
    """All but the empty folders of uploads."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return {name for name in found if re.fullmatch(r"cache/uploads/[0-9a-f]{16}", name) is None}


@contextlib.contextmanager
def living(work: str, folder: Path) -> Iterator[int]:
    """Another process in the middle of some work. Killed at the end, so that it cleans nothing up."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_work, args=(work, folder, ready))
    process.start()
    assert ready.wait(30)
    assert process.pid is not None
    try:
        yield process.pid
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()


def _work(work: str, folder: Path, ready: object) -> None:
    run = Store("memory://leftovers/run")
    with contextlib.ExitStack() as stack:
        if work == "tensorboard":
            TensorBoard(None, run, after_step=0, warn=print)
        elif work == "upload":
            made = Publication(run, "adapter")
            (made.folder / "weights").write_text("half")
        elif work == "scratch":
            (stack.enter_context(scratch()) / "logits").write_text("large")
        elif work == "borrowed copy":
            commit(run, "step", {"a": b"1"})
            stack.enter_context(run.borrowed_path("step"))
        elif work == "copy of this process":
            (process_folder() / "copy").write_text("1")
        ready.set()  # type: ignore[attr-defined]
        signal.pause()


@pytest.mark.parametrize(
    "work", ["tensorboard", "upload", "scratch", "borrowed copy", "copy of this process"]
)
def test_a_killed_process_leaves_nothing_for_long(machine: Path, work: str) -> None:
    before = files(machine)
    with living(work, machine):
        during = files(machine)
        assert len(during) > len(before), "the control: there is something to sweep"
        sweep()
        assert files(machine) == during, "what a living process uses stays"
    assert files(machine) == during, "the control: the kill left it"
    sweep()
    assert files(machine) == before


def test_a_process_that_ends_cleans_up_itself(machine: Path) -> None:
    before = files(machine)
    with scratch() as folder:
        (folder / "a").write_text("1")
    run = Store("memory://leftovers/clean")
    commit(run, "step", {"a": b"1"})
    with run.borrowed_path("step") as copy:
        assert (copy / "a").read_text() == "1"
    TensorBoard(None, run, after_step=0, warn=print).close(finished=True)
    sweep()
    assert files(machine) == before


def test_a_complete_upload_waits(machine: Path) -> None:
    """It may be the only copy of a checkpoint whose store failed."""
    run = Store("memory://leftovers/complete")
    made = Publication(run, "step")
    (made.folder / "COMMIT").write_text("{}")
    made._claim.release()
    sweep()
    assert (made.folder / "COMMIT").is_file()


def test_links_and_files_of_others_are_not_swept(machine: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    (theirs / "sub").mkdir(parents=True)
    (theirs / "sub" / "a").write_text("theirs")
    (machine / "tmp" / "tailor-scratch-0123").symlink_to(theirs)
    (machine / "tmp" / "tailor-scratch-0123.lock").write_text("")
    (machine / "tmp" / "tailor-scratch-4567.lock").symlink_to(theirs / "sub" / "a")
    (machine / "cache" / "files" / "0123").symlink_to(theirs)
    (machine / "cache" / "files" / "0123.borrowed").write_text("")
    (machine / "cache" / "files" / "0123.lock").write_text("")
    sweep()
    assert (theirs / "sub" / "a").read_text() == "theirs"
    assert (machine / "tmp" / "tailor-scratch-0123").is_symlink()
    assert (machine / "cache" / "files" / "0123").is_symlink()


def test_a_lock_whose_file_was_swept_is_taken_again(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = machine / "tmp" / "tailor-scratch-89ab"
    import fcntl

    lock, calls = fcntl.flock, iter(range(9))

    def late(file: int, how: int) -> None:
        if next(calls) == 0:
            lock_of(folder).unlink()  # a sweep between the creation and the lock
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    claim = Claim(folder)
    assert lock_of(folder).exists()
    assert next(calls) == 2
    claim.release()
    claim.release()
    assert not lock_of(folder).exists()


def test_copies_without_a_version_end_with_the_process(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Any] = []
    monkeypatch.setattr("atexit.register", lambda *call: ended.append(call))
    before = files(machine)
    with web() as server:
        server.files["/a.txt"] = b"x"
        copy = Store(f"{server.url}").local_path("a.txt")
    assert copy.read_bytes() == b"x"
    assert copy.is_relative_to(process_folder())
    sweep()
    assert copy.exists()
    _, stack, process = ended[0]
    scratches._end(stack, process + 1)
    assert copy.exists(), "a forked process does not remove it"
    scratches._end(stack, process)
    assert files(machine) == before
