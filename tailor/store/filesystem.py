"""Open fsspec file systems and files. No other module calls fsspec's entry points."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO, Any, cast

import fsspec

from tailor.errors import StoreError

MAX_BYTES = 1 << 30
"""Of a file that is read at once, such as the metrics of a run."""


def filesystem(url: str, *, fresh: bool = True) -> tuple[Any, str]:
    """(file system, path in it) of a URL or a plain path. fresh: listings are not cached.

    The file system raises the errors of its client; `tailor.store.failures` converts them.
    """
    options: dict[str, Any] = {"use_listings_cache": False} if fresh else {}
    return cast("tuple[Any, str]", fsspec.core.url_to_fs(url, **options, **_retry_options(url)))


def opened(url: str, *, compression: str | None = None) -> IO[bytes]:
    """Open a file for reading. compression: `infer` decompresses by the file name's suffix."""
    return cast("IO[bytes]", fsspec.open(url, "rb", compression=compression, **_retry_options(url)).open())


def _retry_options(url: str) -> dict[str, Any]:
    """Turn off the retries of the S3 client (5 by default), because s3fs and `retried` retry too.

    With all three, a wrong endpoint URL took minutes to fail.
    """
    if not url.startswith(("s3://", "s3a://")) or "AWS_MAX_ATTEMPTS" in os.environ:
        return {}
    own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {"retries": {"total_max_attempts": 1}, **own}}


def cache_folder() -> Path:
    """This machine's cache of remote files: `TAILOR_CACHE`, else `tailor` in the user's cache folder."""
    if chosen := os.environ.get("TAILOR_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tailor"


def require_readable(path: Path, *, max_bytes: int | None = MAX_BYTES) -> None:
    """StoreError for a local file that would not end when it is read: a pipe or a device, or a huge file.

    Files that are not there pass: reading them is an error of its own.
    """
    try:
        found = path.stat()
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise StoreError(f"{path} is not a regular file", hint="remove it, or restore the file")
    if max_bytes is not None and found.st_size > max_bytes:
        raise StoreError(
            f"{path} has {found.st_size:,} bytes; at most {max_bytes:,} are read", hint="restore the file"
        )
