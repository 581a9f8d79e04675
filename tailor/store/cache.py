"""This machine's copies of remote files."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """This machine's cache of remote files: `TAILOR_CACHE`, else `tailor` in the user's cache folder."""
    if chosen := os.environ.get("TAILOR_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tailor"


def copied(fs: Any, root: str, name: str) -> Path:
    """A copy of the file or folder `root` (a path of `fs`), which is called `name` here.

    It is made once per machine and version of the files, also when several processes ask at once.
    FileNotFoundError when there is nothing.
    """
    from filelock import FileLock

    found = fs.find(root, detail=True)
    if not found:
        raise FileNotFoundError(root)
    single = list(found) == [root]
    target = cache_folder() / "files" / _version(fs, found)
    content = target / name if single else target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tmp-") as temporary:
                staging = Path(temporary) / "copy"
                for path in found:
                    local = staging / (content.name if single else path[len(root) :].lstrip("/"))
                    local.parent.mkdir(parents=True, exist_ok=True)
                    fs.get_file(path, str(local))
                staging.rename(target)
    return content


def _version(fs: Any, found: dict[str, Any]) -> str:
    """A name that changes with the files' paths, sizes and stamps."""
    version = hashlib.sha256()
    for path, info in sorted(found.items()):
        stamp = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified")
        facts = (fs.unstrip_protocol(path), info.get("size"), str(stamp or info.get("created")))
        version.update(repr(facts).encode())
    return version.hexdigest()[:32]
