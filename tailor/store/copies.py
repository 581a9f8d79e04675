"""Local copies of remote files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tailor.store.failures import writing
from tailor.store.filesystem import cache_folder
from tailor.store.scratch import process_folder

# Keys of fsspec's file info that identify a version, in order of preference. The Hugging Face Hub has the last two.
_STAMPS = (
    *("ETag", "etag", "mtime", "LastModified", "created", "Last-Modified", "Content-MD5"),
    *("blob_id", "xet_hash"),
)


def stamp_of(info: Mapping[str, Any]) -> Any:
    """The version of a file from the file system's `info`: an ETag or a date. None when only the size is known."""
    return next((info[key] for key in _STAMPS if info.get(key)), None)


def copied(fs: Any, root: str, name: str) -> Path:
    """A local copy, with the name `name`, of the file or folder `root`, a path in `fs`.

    It is made once per machine and version of the files, also when several processes need it at the same time. If the
    file system does not report versions, each process makes its own copy and removes it when it ends.
    FileNotFoundError when `root` does not exist.
    """
    return _copied(fs, root, name, *_found(fs, root))


@contextlib.contextmanager
def borrowed(fs: Any, root: str, name: str) -> Iterator[Path]:
    """Same as `copied`, but the last process that uses the copy removes it."""
    import fcntl

    found, target = _found(fs, root)
    used = Path(f"{target}.borrowed")
    with _shared(used) as users:
        try:
            yield _copied(fs, root, name, found, target)
        finally:  # also removes a damaged copy, so that the next try copies it again
            with contextlib.suppress(BlockingIOError):  # another process still uses it
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(target, ignore_errors=True)
                used.unlink(missing_ok=True)


def _shared(path: Path) -> IO[str]:
    """The file, open and locked for sharing. Another user of the copy may remove the file until it is locked."""
    import fcntl

    while True:
        file = path.open("w")
        fcntl.flock(file, fcntl.LOCK_SH)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def _found(fs: Any, root: str) -> tuple[dict[str, Any], Path]:
    """The info of all files, and the path for their copy. Creates the parent folder of that path."""
    found = fs.find(root, detail=True)
    if not found:
        raise FileNotFoundError(root)
    # On some file systems (http) `find` returns less than `info`.
    found = {path: info if stamp_of(info) else {**info, **fs.info(path)} for path, info in found.items()}
    has_versions = all(stamp_of(info) for info in found.values())
    with writing(str(cache_folder()), "TAILOR_CACHE"):
        folder = cache_folder() / "files" if has_versions else process_folder()
        folder.mkdir(parents=True, exist_ok=True)
    return found, folder / _version(fs, found)


def _copied(fs: Any, root: str, name: str, found: dict[str, Any], target: Path) -> Path:
    from filelock import FileLock

    single = list(found) == [root]
    content = target / name if single else target
    with FileLock(f"{target}.lock"):
        if not target.exists():
            staging = target.with_name(f".tmp-{target.name}")
            shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
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
    """A hash of the files' paths, sizes and versions."""
    version = hashlib.sha256()
    for path, info in sorted(found.items()):
        facts = (fs.unstrip_protocol(path), info.get("size"), str(stamp_of(info)))
        version.update(repr(facts).encode())
    return version.hexdigest()[:32]
