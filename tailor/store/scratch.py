"""Temporary folders of this machine. What a killed process left is swept at the next start.

Each has a lock file beside it that its process holds with flock. The system releases the lock when the process ends,
however it ends, so a lock that is free shows that the folder has no owner.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from tailor.errors import StoreError
from tailor.store.failures import is_full
from tailor.store.filesystem import cache_folder
from tailor.store.removal import TEMPORARY

PREFIX = "tailor-scratch-"
_LOCK = ".lock"
_FULL = 2**20
"""Free bytes of a full disk, at most."""
_COPIES, _UPLOADS = "files", "uploads"
_swept: list[bool] = []
"""Not empty when this process has swept."""
_of_process: dict[int, Path] = {}
"""Process id -> its `process_folder`. A forked process makes its own."""


class Claim:
    """A lock on the lock file of `folder`, until `release` or the end of the process."""

    def __init__(self, folder: Path) -> None:
        self.path = lock_of(folder)
        while (file := _locked(self.path, create=True, wait=True)) is None:
            pass  # a sweep removed the file between its creation and its lock
        self._file: int | None = file

    def release(self) -> None:
        """Remove the lock file. The folder must be gone, or be complete. Does nothing the second time."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


def lock_of(folder: Path) -> Path:
    """The lock file of a temporary folder."""
    return folder.with_name(folder.name + _LOCK)


@contextlib.contextmanager
def scratch(root: Path | None = None) -> Iterator[Path]:
    """A new temporary folder, removed at the end. root: its parent; by default the system's folder for temporary files.

    StoreError when that one is full.
    """
    if not _swept:
        _swept.append(True)
        sweep()
    folder = (root or Path(tempfile.gettempdir())) / f"{PREFIX}{uuid.uuid4().hex[:12]}"
    claim = Claim(folder)
    try:
        folder.mkdir(mode=0o700)
        yield folder
    except Exception as error:
        if (
            root is None and is_full(error) and shutil.disk_usage(folder).free < _FULL
        ):  # else it is another disk
            raise StoreError(
                f"no space left for temporary files in {folder.parent}",
                hint="free some space there, or set TMPDIR to a folder on another disk",
            ) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        claim.release()


def process_folder() -> Path:
    """A temporary folder in the cache that exists until this process ends."""
    process = os.getpid()
    if process not in _of_process:
        root = cache_folder() / _COPIES
        root.mkdir(parents=True, exist_ok=True)
        stack = contextlib.ExitStack()
        _of_process[process] = stack.enter_context(scratch(root))
        atexit.register(_end, stack, process)
    return _of_process[process]


def _end(stack: contextlib.ExitStack, process: int) -> None:
    """Remove the folder of a process, unless this one was forked from it."""
    if os.getpid() == process:
        stack.close()


def sweep() -> None:
    """Remove what killed processes of this user left in the folder for temporary files and in the cache.

    A complete folder that waits for its upload stays. Nothing else is touched, and no link is followed.
    """
    with contextlib.suppress(OSError):  # another process sweeps too, or the folder cannot be listed
        _sweep()


def _sweep() -> None:
    copies = cache_folder() / _COPIES
    for root in (Path(tempfile.gettempdir()), copies):
        for lock in root.glob(f"{PREFIX}*{_LOCK}"):
            _sweep_one(lock)
    for folder in (cache_folder() / _UPLOADS).glob("*"):
        for lock in folder.glob(f"{TEMPORARY}*{_LOCK}"):
            _sweep_one(lock)
    for lock in copies.glob(f"*{_LOCK}"):
        if not lock.name.startswith(PREFIX):
            _sweep_copy(lock)


def _sweep_one(lock: Path) -> None:
    """Remove a temporary folder and its lock file, unless a process holds the lock or the folder is complete."""
    if (file := _locked(lock, create=False, wait=False)) is None:
        return
    try:
        folder = lock.with_name(lock.name.removesuffix(_LOCK))
        if not (folder / "COMMIT").is_file():
            _remove(folder)
        lock.unlink(missing_ok=True)
    finally:
        os.close(file)


def _sweep_copy(lock: Path) -> None:
    """Remove the lock file of a copy that is gone, with a partial copy; of a borrowed copy that no process uses, all."""
    borrowed = lock.with_name(lock.name.removesuffix(_LOCK) + ".borrowed")
    target = lock.with_name(lock.name.removesuffix(_LOCK))
    if (file := _locked(lock, create=False, wait=False)) is None:
        return  # another process makes the copy now
    try:
        if borrowed.exists():
            if (users := _locked(borrowed, create=False, wait=False)) is None:
                return
            try:
                _remove(target)
                borrowed.unlink(missing_ok=True)
            finally:
                os.close(users)
        _remove(target.with_name(f"{TEMPORARY}{target.name}"))
        if not target.exists():
            lock.unlink(missing_ok=True)
    finally:
        os.close(file)


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def _locked(path: Path, *, create: bool, wait: bool) -> int | None:
    """The locked file, which the caller closes; None when another process holds it, or it is not this user's regular file."""
    import fcntl

    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if create else 0), 0o600)
    except OSError:
        if create:
            raise
        return None
    try:
        about = os.fstat(file)
        if stat.S_ISREG(about.st_mode) and about.st_uid == os.getuid():
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.fstat(file).st_nlink:
                return file
    except OSError:
        if create:  # a file system without locks: the folder is used, and is not swept
            return file
    os.close(file)
    return None
