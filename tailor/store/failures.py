"""Storage errors: convert them to StoreErrors with the URL and a hint, and retry the transient ones."""

from __future__ import annotations

import contextlib
import errno
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from tailor.errors import StoreError, TailorError
from tailor.store.filesystem import cache_folder

T = TypeVar("T")

_UNWRITABLE = {
    errno.EACCES: "this user has no write permission",
    errno.EPERM: "this user has no write permission",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "the folder cannot be created",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "a part of the path is a file",
}
_FULL = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "this user's disk quota is exceeded",
    errno.EFBIG: "the file would exceed the maximum file size",
}
_FULL_MESSAGE = re.compile(
    r"\[Errno (27|28|122)\]|os error (27|28|122)\b|\d+ requested and \d+ written|inline_container|iostream error"
)
"""Of Python, Rust (safetensors), NumPy, torch.save and C++ (llama.cpp)."""
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, and AWS_ENDPOINT_URL if it is not Amazon's S3",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS in the environment",
    "hf": "set HF_TOKEN in the environment",
}
_RIGHTS = {
    "HeadBucket": "s3:ListBucket",
    "ListObjects": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "HeadObject": "s3:GetObject",
    "CopyObject": "s3:GetObject or s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "UploadPartCopy": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "DeleteObjects": "s3:DeleteObject",
}
"""Operation of S3 -> the right that it needs, where the names differ."""
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between the retries of a failed request to a remote store."""


def retried(action: Callable[[], T]) -> T:
    """Call `action` until it succeeds, at most 6 times with growing pauses. Raises the last error.

    Permanent errors (no permission, no such bucket, no space) are raised at once.
    """
    for pause in PAUSES:
        try:
            return action()
        except Exception as error:
            if _is_permanent(error):
                raise
            time.sleep(pause)
    return action()


def _is_permanent(error: Exception) -> bool:
    kinds = (FileNotFoundError, NotADirectoryError, IsADirectoryError, ImportError, NotImplementedError)
    return isinstance(error, kinds) or is_credential(error) or is_full(error)


def is_full(error: BaseException | None) -> bool:
    """Whether an error is one of a full disk or quota. False for a TailorError, which names the cause already."""
    if error is None or isinstance(error, TailorError):
        return False
    return (isinstance(error, OSError) and error.errno in _FULL) or reports_full(str(error))


def reports_full(message: str) -> bool:
    """Whether a message, for example of another program, reports a write that a full disk or quota cut short."""
    return _FULL_MESSAGE.search(message) is not None


def is_credential(error: Exception) -> bool:
    """Whether credentials are missing or wrong."""
    return "Credential" in type(error).__name__ or isinstance(error, PermissionError)


def missing_right(error: Exception) -> tuple[str, bool] | None:
    """(the right that S3 denies, such as `s3:PutObject`; whether the credentials are certainly valid). None for other errors.

    The answer to a HEAD request has no reason: wrong credentials give the same.
    """
    cause = error.__cause__  # the error of boto, which s3fs translates
    response, operation = getattr(cause, "response", None), getattr(cause, "operation_name", None)
    if not isinstance(response, dict) or not isinstance(operation, str):
        return None
    code = response.get("Error", {}).get("Code")
    if code not in ("AccessDenied", "403", "Forbidden"):
        return None
    return _RIGHTS.get(operation, f"s3:{operation}"), code == "AccessDenied"


@contextlib.contextmanager
def naming(url: str, *, kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Convert file system errors of these types into a StoreError with the URL.

    Clients of remote stores raise error types of their own (no credentials, unknown bucket), not only OSError.
    """
    try:
        yield
    except kinds as error:
        if isinstance(error, StoreError):
            raise
        raise _store_error(url, error) from error


@contextlib.contextmanager
def writing(url: str, setting: str = "data.store (or save.to)") -> Iterator[None]:
    """Same as `naming`, for writing to a local folder. setting: the key or variable to change, for the hint."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if is_full(error):
            reason = _FULL.get(number or 0, _FULL[errno.ENOSPC])
            hint = "free some space, then run the same command again"
        elif reason := _UNWRITABLE.get(number or 0, ""):
            hint = f"set {setting} to a writable folder"
        elif isinstance(error, OSError):
            raise _store_error(url, error) from error
        else:
            raise
        raise StoreError(f"{url} cannot be written: {reason}", hint=hint) from error


def hint_of(url: str, error: Exception) -> str | None:
    """How to fix an error of a file system's client; None when the cause is unknown."""
    protocol, remote, _ = url.partition("://")
    if isinstance(error, ImportError):
        return "install the missing package"
    if not remote:
        return None
    if str(error).startswith("Protocol not known"):
        return "protocols are, for example, s3, gs, hf, file and memory"
    if is_full(error):
        return f"free some space in {cache_folder()}, or set TAILOR_CACHE to a folder on another disk"
    if (denied := missing_right(error)) is not None:
        right, is_certain = denied
        bucket, _, key = url.partition("://")[2].partition("/")
        resource = bucket if right == "s3:ListBucket" else f"{bucket}/{key}"
        needed = f"{right} on arn:aws:s3:::{resource}"
        if is_certain:
            return f"the credentials are valid but lack the right {needed}: add it to their policy"
        return (
            f"{_CREDENTIALS['s3']}; if they are right, they lack the right {needed}: add it to their policy"
        )
    if is_credential(error):
        variables = _CREDENTIALS.get("gs" if protocol == "gcs" else protocol)
        return variables or "set the credentials of this store in the environment"
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
                f"{url}: the bucket {url.split('/')[2]} does not exist",
                hint="create the bucket, or check the URL and AWS_ENDPOINT_URL",
            )
        return StoreError(f"{url} does not exist")
    if isinstance(error, IsADirectoryError):
        return StoreError(
            f"{url} is a folder, and a file is expected there", hint="remove the folder, or restore the file"
        )
    if isinstance(error, NotADirectoryError):
        return StoreError(f"{url}: a part of the path is a file", hint="use the path of a folder")
    if isinstance(error, PermissionError) and "://" not in url:
        return StoreError(
            f"{url}: this user has no permission to read or write it", hint="check its permissions"
        )
    return StoreError(f"{url}: {error}".rstrip("."), hint=hint_of(url, error))
