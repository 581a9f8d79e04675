"""The one place that asks fsspec for a file system."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any, cast

import fsspec


def filesystem(url: str, *, fresh: bool = True) -> tuple[Any, str]:
    """(file system, path in it) of a URL or a plain path. `fresh`: listings are asked for anew each time.

    Its errors are those of its client, for which `tailor.store.failures` has words.
    """
    options: dict[str, Any] = {"use_listings_cache": False} if fresh else {}
    return cast("tuple[Any, str]", fsspec.core.url_to_fs(url, **options, **_patience(url)))


def opened(url: str, *, compression: str | None = None) -> IO[bytes]:
    """A file to read from its beginning. `compression`: `infer` unpacks by the name's ending."""
    return cast("IO[bytes]", fsspec.open(url, "rb", compression=compression, **_patience(url)).open())


def _patience(url: str) -> dict[str, Any]:
    """S3's client tries five times where s3fs and `retried` do too, so that a wrong address took minutes to tell."""
    if not url.startswith(("s3://", "s3a://")) or "AWS_MAX_ATTEMPTS" in os.environ:
        return {}
    own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {"retries": {"total_max_attempts": 1}, **own}}


def cache_folder() -> Path:
    """This machine's cache of remote files: `TAILOR_CACHE`, else `tailor` in the user's cache folder."""
    if chosen := os.environ.get("TAILOR_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tailor"
