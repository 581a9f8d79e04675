"""What a file system raises, in words that name the place and the hint; and what is worth another try."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from tailor.errors import StoreError
from tailor.store.filesystem import cache_folder

T = TypeVar("T")

_UNWRITABLE = {
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.EROFS: "it is on a read-only file system",
    errno.ENOENT: "no folder can be made there",
    errno.ENOTDIR: "a part of its path is a file",
    errno.EEXIST: "a part of its path is a file",
}
_FULL = {
    errno.ENOSPC: "no space is left there",
    errno.EDQUOT: "this user's quota is used up",
    errno.EFBIG: "the file would be larger than is allowed there",
}
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, and AWS_ENDPOINT_URL for a server of your own",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS in the environment",
    "hf": "set HF_TOKEN in the environment",
}
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between the tries of what a remote store fails to do."""


def retried(action: Callable[[], T]) -> T:
    """Call until it succeeds, with growing pauses; the last error is raised.

    Errors that another try cannot fix (no permission, no such bucket, no space) are raised at once.
    """
    for pause in PAUSES:
        try:
            return action()
        except Exception as error:
            if _is_lasting(error):
                raise
            time.sleep(pause)
    return action()


def _is_lasting(error: Exception) -> bool:
    kinds = (FileNotFoundError, NotADirectoryError, IsADirectoryError, ImportError, NotImplementedError)
    return isinstance(error, kinds) or is_credential(error) or _is_full(error)


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in _FULL


def is_credential(error: Exception) -> bool:
    """Whether a client found no credentials, or wrong ones."""
    return "Credential" in type(error).__name__ or isinstance(error, PermissionError)


@contextlib.contextmanager
def naming(url: str, *, kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Turn a file system's error into a StoreError that names the URL.

    Clients of remote stores raise errors of their own (no credentials, unknown bucket), not only OSErrors.
    """
    try:
        yield
    except kinds as error:
        if isinstance(error, StoreError):
            raise
        raise _store_error(url, error) from error


@contextlib.contextmanager
def writing(url: str, setting: str = "data.store (or save.to)") -> Iterator[None]:
    """As `naming`, for a local folder that `setting` chose: what keeps it from being written is told as such."""
    try:
        yield
    except OSError as error:
        if reason := _UNWRITABLE.get(error.errno or 0):
            hint = f"set {setting} to a folder that can be written"
        elif reason := _FULL.get(error.errno or 0):
            hint = "make room there, then give the same command again"
        else:
            raise _store_error(url, error) from error
        raise StoreError(f"{url} cannot be written: {reason}", hint=hint) from error


def hint_of(url: str, error: Exception) -> str | None:
    """How to fix what a remote file system's client raised, where its kind is known."""
    protocol, remote, _ = url.partition("://")
    if isinstance(error, ImportError):
        return "install the package that it names"
    if not remote:
        return None
    if str(error).startswith("Protocol not known"):
        return "known are, for example: s3, gs, file, memory, hf"
    if _is_full(error):
        return f"make room in {cache_folder()}, or set TAILOR_CACHE to a folder on another disk"
    if is_credential(error):
        variables = _CREDENTIALS.get("gs" if protocol == "gcs" else protocol)
        return variables or "set its credentials in the environment"
    if isinstance(error, OSError) or "Connect" in type(error).__name__:
        return (
            "check the URL, AWS_ENDPOINT_URL and the network"
            if protocol == "s3"
            else "check the URL and the network"
        )
    return None


def _store_error(url: str, error: Exception) -> StoreError:
    if isinstance(error, FileNotFoundError):
        if "bucket does not exist" in str(error):
            return StoreError(
                f"{url}: there is no bucket {url.split('/')[2]}",
                hint="make the bucket, or check the URL and AWS_ENDPOINT_URL",
            )
        return StoreError(f"{url} does not exist")
    if isinstance(error, NotADirectoryError):
        return StoreError(f"{url}: a part of its path is a file", hint="name a folder")
    if isinstance(error, PermissionError) and "://" not in url:
        return StoreError(f"{url} may not be read or written by this user", hint="check its permissions")
    return StoreError(f"{url}: {error}".rstrip("."), hint=hint_of(url, error))
