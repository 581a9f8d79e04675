"""Copies of remote files on this machine."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tailor.store.failures import writing
from tailor.store.filesystem import cache_folder

# The first that a store tells of a file names its version. The hub tells the last two.
_STAMPS = (
    *("ETag", "etag", "mtime", "LastModified", "created", "Last-Modified", "Content-MD5"),
    *("blob_id", "xet_hash"),
)
_THIS_PROCESS = uuid.uuid4().hex


def stamp_of(info: Mapping[str, Any]) -> Any:
    """What a file system's `info` of a file says of its version; None where it says nothing but the size."""
    return next((info[key] for key in _STAMPS if info.get(key)), None)


def copied(fs: Any, root: str, name: str) -> Path:
    """A copy of the file or folder `root` (a path of `fs`), which is called `name` here.

    It is made once per machine and version of the files, also when several processes ask at once. Of files whose version
    is not told, each process makes its own, and removes it when it ends.
    FileNotFoundError when there is nothing.
    """
    return _copied(fs, root, name, *_found(fs, root))


@contextlib.contextmanager
def borrowed(fs: Any, root: str, name: str) -> Iterator[Path]:
    """As `copied`, of a copy that is removed by the last of those that borrowed it."""
    import fcntl

    found, target = _found(fs, root)
    with open(f"{target}.borrowed", "w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield _copied(fs, root, name, found, target)
        finally:  # also of one that is damaged: the next try copies it again
            with contextlib.suppress(BlockingIOError):  # another process reads it
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(target, ignore_errors=True)


def _found(fs: Any, root: str) -> tuple[dict[str, Any], Path]:
    """The files and where their copy belongs, in a folder that is there."""
    found = fs.find(root, detail=True)
    if not found:
        raise FileNotFoundError(root)
    # Of some a listing tells less than `info` does (http).
    found = {path: info if stamp_of(info) else {**info, **fs.info(path)} for path, info in found.items()}
    told = all(stamp_of(info) for info in found.values())
    target = cache_folder() / "files" / _version(fs, found, "" if told else f"{_THIS_PROCESS} {os.getpid()}")
    with writing(str(cache_folder()), "TAILOR_CACHE"):
        target.parent.mkdir(parents=True, exist_ok=True)
    if not told:
        atexit.register(_drop, target, os.getpid())
    return found, target


def _drop(target: Path, process: int) -> None:
    """Remove a copy, unless this is a process that was forked from the one that made it."""
    if os.getpid() == process:
        shutil.rmtree(target, ignore_errors=True)
        for ending in (".lock", ".borrowed"):
            Path(f"{target}{ending}").unlink(missing_ok=True)


def _copied(fs: Any, root: str, name: str, found: dict[str, Any], target: Path) -> Path:
    from filelock import FileLock

    single = list(found) == [root]
    content = target / name if single else target
    with FileLock(f"{target}.lock"):
        if not target.exists():
            staging = target.with_name(f".tmp-{target.name}")
            shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
            try:
                for path in found:
                    local = staging / (content.name if single else path[len(root) :].lstrip("/"))
                    local.parent.mkdir(parents=True, exist_ok=True)
                    fs.get_file(path, str(local))
                staging.rename(target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return content


def _version(fs: Any, found: dict[str, Any], beside: str) -> str:
    """A name that changes with the files' paths, sizes and stamps, and with `beside`."""
    version = hashlib.sha256(beside.encode())
    for path, info in sorted(found.items()):
        facts = (fs.unstrip_protocol(path), info.get("size"), str(stamp_of(info)))
        version.update(repr(facts).encode())
    return version.hexdigest()[:32]
