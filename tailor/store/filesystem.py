"""Open fsspec file systems and files. No other module calls fsspec's entry points."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any, cast

import fsspec


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
