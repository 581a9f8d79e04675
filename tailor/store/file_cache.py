"""A bounded cache of remote files on this machine, which all its processes share.

Files are fetched when they are needed, checked against their checksum, and renamed to their final name. When the cache is full,
the files that were not used for longest are removed: a process that has mapped one keeps it. So the loss of a file, or of all,
costs another download and changes nothing. What a killed process left is replaced or removed by the next one. A file that
this process did not fetch is checked when it first uses it: the disk, or another user of a shared folder, may have changed it.

    CACHE/shards/KEY              a file; the key is a hash of its URL and checksum. Its time of access is that of its last use
    CACHE/shards/.tmp-KEY-XXXXXXXX    being fetched, by the holder of the lock
    CACHE/shards/locks/XX         locks of the keys that begin with XX, and of the removal

Nothing else in the folder is removed or written.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from tailor.errors import StoreError
from tailor.store.failures import is_full, writing
from tailor.store.filesystem import cache_folder
from tailor.store.removal import TEMPORARY
from tailor.store.store import Store

_ROOM = "room"
_KEY = re.compile(r"[0-9a-f]{32}")
_FETCHED = re.compile(rf"{re.escape(TEMPORARY)}([0-9a-f]{{32}})-[0-9a-f]{{8}}")


_SIZE = "TAILOR_CACHE_GB"


def limit_of_the_machine(folder: Path, used: int) -> int:
    """The limit in bytes: `TAILOR_CACHE_GB`, else half of what the cache has and what is free beside it. StoreError for a
    value that is no size."""
    if not (chosen := os.environ.get(_SIZE)):
        return (used + shutil.disk_usage(folder).free) // 2
    try:
        size = float(chosen)
        if 0 <= size < math.inf:
            return int(size * 1e9)
    except ValueError:
        pass
    raise StoreError(
        f"{_SIZE}: {chosen!r} is not a size", hint=f"set it to a number of gigabytes, such as {_SIZE}=200"
    )


class FileCache:
    """The cache of the files of a remote folder. limit: (folder, bytes used) -> the largest size of the cache in bytes.

    Several folders, and runs with other limits, may use the cache at the same time.
    """

    def __init__(self, store: Store, limit: Callable[[Path, int], int] = limit_of_the_machine) -> None:
        self._store, self._limit = store, limit
        self._checked: set[tuple[str, int, int]] = set()
        """(key, inode, time of change) of the files whose checksum this process has compared."""

    def path(self, name: str, size: int, checksum: str) -> Path:
        """A local copy of a file. Another process may remove it until it is open: then call this again.

        StoreError when the file cannot be fetched, is damaged, or does not fit on the disk.
        """
        from filelock import FileLock

        folder = cache_folder() / "shards"
        target = folder / hashlib.sha256(f"{self._store.url_of(name)}\0{checksum}".encode()).hexdigest()[:32]
        with writing(str(folder), "TAILOR_CACHE"):
            if self._is_valid(target, size, checksum):
                return target
            (folder / "locks").mkdir(parents=True, exist_ok=True)
            with FileLock(_lock_of(target)):
                if not self._is_valid(target, size, checksum):
                    self._fetch(name, target, size, checksum)
        return target

    def _is_valid(self, target: Path, size: int, checksum: str) -> bool:
        """Whether the file exists and has the checksum. Marks it as used. A link is not followed."""
        try:
            found = target.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_size != size:
                return False
            version = (target.name, found.st_ino, found.st_mtime_ns)
            if version not in self._checked:
                if checksum_of(target) != checksum:
                    return False
                self._checked.add(version)
        except (FileNotFoundError, PermissionError):
            return False
        with contextlib.suppress(OSError):  # of another user, or on a read-only disk
            os.utime(target, ns=(time.time_ns(), found.st_mtime_ns))
        return True

    def _fetch(self, name: str, target: Path, size: int, checksum: str) -> None:
        # In a folder that others may write to, nobody can have put a link at a name that is drawn now.
        temporary = target.with_name(f"{TEMPORARY}{target.name}-{uuid.uuid4().hex[:8]}")
        self._make_room(target.parent, size)
        try:
            for _ in range(2):
                try:
                    self._store.get_file(name, temporary)
                except StoreError as error:
                    if isinstance(error.__cause__, FileNotFoundError):
                        raise self._damaged(name, "does not exist") from error
                    if not is_full(error.__cause__):
                        raise
                    # Other files fill the disk: everything else in the cache makes room for this one.
                    self._make_room(target.parent, size, empty=True)
                    self._store.get_file(name, temporary)
                if temporary.stat().st_size == size and checksum_of(temporary) == checksum:
                    found = temporary.stat()
                    self._checked.add((target.name, found.st_ino, found.st_mtime_ns))
                    os.replace(temporary, target)
                    return
        finally:
            temporary.unlink(missing_ok=True)
        raise self._damaged(name, "is damaged: its checksum is not that of the manifest")

    def _damaged(self, name: str, why: str) -> StoreError:
        return StoreError(
            f"{self._store.url_of(name)} {why}",
            hint=f"remove {self._store.url} and run the same command again: it prepares the tokens again",
        )

    def _make_room(self, folder: Path, size: int, *, empty: bool = False) -> None:
        """Remove the files that were not used for longest, until there is room for `size` bytes. empty: remove all."""
        from filelock import FileLock

        with FileLock(folder / "locks" / _ROOM):
            _sweep(folder)
            found = sorted(_files(folder))
            used = sum(bytes_ for _, bytes_, _ in found)
            limit = 0 if empty else self._limit(folder, used)
            for _, bytes_, path in found:
                if used + size <= limit:
                    break
                if _KEY.fullmatch(path.name):  # the others are being fetched
                    with contextlib.suppress(FileNotFoundError, PermissionError):
                        path.unlink()
                        used -= bytes_


def _files(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """(time of the last use, bytes, path) of each file of the cache. Other processes rename them at the same time."""
    for path in folder.iterdir():
        if _KEY.fullmatch(path.name) or _FETCHED.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):
                found = path.lstat()
                if stat.S_ISREG(found.st_mode):
                    yield found.st_atime_ns, found.st_size, path


def _sweep(folder: Path) -> None:
    """Remove what killed processes were fetching: nobody holds its lock."""
    from filelock import FileLock, Timeout

    for path in folder.glob(f"{TEMPORARY}*"):
        if match := _FETCHED.fullmatch(path.name):
            with (
                contextlib.suppress(Timeout, PermissionError),
                FileLock(_lock_of(path.with_name(match[1])), timeout=0),
            ):
                path.unlink(missing_ok=True)


def _lock_of(target: Path) -> Path:
    return target.parent / "locks" / target.name[:2]


def checksum_of(path: Path) -> str:
    """xxh3 of a file, 128 bits in hexadecimal digits."""
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
