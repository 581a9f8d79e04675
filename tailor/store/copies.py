"""Copies of remote files on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tailor.store.cache import cache_folder
from tailor.store.failures import writing


def copied(fs: Any, root: str, name: str) -> Path:
    """A copy of the file or folder `root` (a path of `fs`), which is called `name` here.

    It is made once per machine and version of the files, also when several processes ask at once.
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
    target = cache_folder() / "files" / _version(fs, found)
    with writing(str(cache_folder()), "TAILOR_CACHE"):
        target.parent.mkdir(parents=True, exist_ok=True)
    return found, target


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


def _version(fs: Any, found: dict[str, Any]) -> str:
    """A name that changes with the files' paths, sizes and stamps."""
    version = hashlib.sha256()
    for path, info in sorted(found.items()):
        stamp = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified")
        facts = (fs.unstrip_protocol(path), info.get("size"), str(stamp or info.get("created")))
        version.update(repr(facts).encode())
    return version.hexdigest()[:32]
