"""A disk that is full while files are written is an error with the folder and a hint, whichever library wrote them."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from tailor.errors import StoreError
from tailor.store import Store
from tailor.store.publication import Publication
from tailor.store.scratch import scratch

FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError("16704 requested and 5632 written"),  # of NumPy
    RuntimeError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    ),  # of safetensors
]
OTHERS = [
    OSError(errno.EIO, "Input/output error"),
    KeyError("layers"),
    StoreError("the store fails: [Errno 28] No space left on device"),
]


def raised(context: Any, error: Exception) -> Exception:
    """The error that the context makes of the error in it."""
    try:
        with context:
            raise error
    except Exception as found:
        return found


@pytest.mark.parametrize("error", FULL, ids=str)
def test_it_is_named(tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert raised(scratch(), error) is error, "the disk of the temporary files is another one"
    monkeypatch.setattr("tailor.store.scratch._FULL", 2**60)
    made, temporary = raised(Publication(Store(str(tmp_path)), "out"), error), raised(scratch(), error)
    assert isinstance(made, StoreError)
    assert isinstance(temporary, StoreError)
    assert made.message.startswith(f"{tmp_path} cannot be written: ")
    assert made.hint == "free some space, then run the same command again"
    assert temporary.message.startswith("no space left for temporary files in /")
    assert temporary.hint == "free some space there, or set TMPDIR to a folder on another disk"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_control_other_errors_stay_as_they_are(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailor.store.scratch._FULL", 2**60)
    assert raised(Publication(Store(str(tmp_path)), "out"), error) is error
    assert raised(scratch(), error) is error
    assert list(tmp_path.iterdir()) == []
