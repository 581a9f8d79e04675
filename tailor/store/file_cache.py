"""A bounded cache of remote files on this machine, which all its processes share.

Files are fetched when they are needed, checked against their checksum, and renamed to their final name. When the cache is full,
the files that were not used for longest are removed: a process that has mapped one keeps it. So the loss of a file, or of all,
costs another download and changes nothing. What a killed process left is replaced or removed by the next one.

    CACHE/shards/KEY         a file; the key is a hash of its URL and checksum
    CACHE/shards/.tmp-KEY    being fetched, by the holder of the lock
    CACHE/shards/locks/XX    locks of the keys that begin with XX, and of the removal
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tailor.errors import StoreError
from tailor.store.failures import is_full, writing
from tailor.store.filesystem import cache_folder
from tailor.store.removal import TEMPORARY
from tailor.store.store import Store

_ROOM = "room"


def half_of_the_disk(folder: Path, used: int) -> int:
    """The default limit in bytes: half of what the cache has and what is free beside it."""
    return (used + shutil.disk_usage(folder).free) // 2


class FileCache:
    """The cache of the files of a remote folder. limit: (folder, bytes used) -> the largest size of the cache in bytes.

    Several folders, and runs with other limits, may use the cache at the same time.
    """

    def __init__(self, store: Store, limit: Callable[[Path, int], int] = half_of_the_disk) -> None:
        self._store, self._limit = store, limit

    def path(self, name: str, size: int, checksum: str) -> Path:
        """A local copy of a file. Another process may remove it until it is open: then call this again.

        StoreError when the file cannot be fetched, is damaged, or does not fit on the disk.
        """
        folder = cache_folder() / "shards"
        target = folder / hashlib.sha256(f"{self._store.url_of(name)}\0{checksum}".encode()).hexdigest()[:32]
        if _is_complete(target, size):
            return target
        with writing(str(cache_folder()), "TAILOR_CACHE"):
            (folder / "locks").mkdir(parents=True, exist_ok=True)
        from filelock import FileLock

        with FileLock(_lock_of(target)):
            if not _is_complete(target, size):
                self._fetch(name, target, size, checksum)
        return target

    def _fetch(self, name: str, target: Path, size: int, checksum: str) -> None:
        temporary = target.with_name(TEMPORARY + target.name)
        self._make_room(target.parent, size)
        try:
            for _ in range(2):
                try:
                    self._store.get_file(name, temporary)
                except StoreError as error:
                    if not is_full(error.__cause__):
                        raise
                    # Other files fill the disk: everything else in the cache makes room for this one.
                    self._make_room(target.parent, size, empty=True)
                    self._store.get_file(name, temporary)
                if temporary.stat().st_size == size and checksum_of(temporary) == checksum:
                    os.replace(temporary, target)
                    return
        finally:
            temporary.unlink(missing_ok=True)
        raise StoreError(
            f"{self._store.url_of(name)} is damaged: its checksum is not that of the manifest",
            hint=f"remove {self._store.url} and run the same command again: it prepares the tokens again",
        )

    def _make_room(self, folder: Path, size: int, *, empty: bool = False) -> None:
        """Remove the files that were not used for longest, until there is room for `size` bytes. empty: remove all."""
        from filelock import FileLock

        with FileLock(folder / "locks" / _ROOM):
            _sweep(folder)
            found = []
            for path in folder.iterdir():
                if path.is_file():
                    about = path.stat()
                    found.append((about.st_mtime_ns, about.st_size, path))
            used = sum(bytes_ for _, bytes_, _ in found)
            limit = 0 if empty else self._limit(folder, used)
            for _, bytes_, path in sorted(found):
                if used + size <= limit:
                    break
                if not path.name.startswith(TEMPORARY):  # another process fetches it now
                    path.unlink(missing_ok=True)
                    used -= bytes_


def _sweep(folder: Path) -> None:
    """Remove what killed processes were fetching: nobody holds its lock."""
    from filelock import FileLock, Timeout

    for path in folder.glob(f"{TEMPORARY}*"):
        try:
            with FileLock(_lock_of(path.with_name(path.name.removeprefix(TEMPORARY))), timeout=0):
                path.unlink(missing_ok=True)
        except Timeout:
            continue


def _lock_of(target: Path) -> Path:
    return target.parent / "locks" / target.name[:2]


def _is_complete(target: Path, size: int) -> bool:
    """Whether the file exists in full. Marks it as used."""
    try:
        if target.stat().st_size != size:
            return False
        os.utime(target)
    except FileNotFoundError:
        return False
    return True


def checksum_of(path: Path) -> str:
    """xxh3 of a file, 128 bits in hexadecimal digits."""
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
