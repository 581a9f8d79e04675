"""Each check runs by itself: errors, exits and hangs of one are its finding, and the others still run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from tailor.doctor.examine import CHECKS, examine
from tailor.doctor.finding import Context, Finding
from tailor.errors import StoreError

_never = threading.Event()
CODE = {name: f"{__name__}:{name}" for name in ("raises", "exits", "mistake", "hangs", "tells", "last")}


def raises(_: Context) -> Iterator[Finding]:
    yield Finding("ok", "before")
    raise ZeroDivisionError("division by zero\nsecond line")


def exits(_: Context) -> Iterator[Finding]:
    sys.exit(3)
    yield Finding("ok", "never")


def mistake(_: Context) -> Iterator[Finding]:
    raise StoreError("no such bucket", hint="make it")
    yield Finding("ok", "never")


def hangs(_: Context) -> Iterator[Finding]:
    yield Finding("ok", "first")
    _never.wait()


def tells(_: Context) -> Iterator[Finding]:
    yield Finding("ok", "token hf_abcdefghijklmnopqrstuvwxyz0123456789 \x1b]0;title\x07")


def last(_: Context) -> Iterator[Finding]:
    yield Finding("ok", "done")


def test_no_check_ends_the_others() -> None:
    found = [(name, one.status, one.message, one.hint) for name, one in examine(Context(), CODE, seconds=0.2)]
    assert found[:2] == [
        ("raises", "ok", "before", ""),
        (
            "raises",
            "warning",
            "this check failed: ZeroDivisionError: division by zero",
            "report it if it repeats",
        ),
    ]
    assert found[2][:2] == ("exits", "warning")
    assert found[3] == ("mistake", "failed", "no such bucket", "make it")
    assert found[4] == ("hangs", "ok", "first", "")
    assert found[5][:3] == ("hangs", "warning", "no result within 0.2 s")
    (told,) = (message for name, _, message, _ in found if name == "tells")
    assert "hf_abc" not in told
    assert "\x1b" not in told
    assert found[-1] == ("last", "ok", "done", "")


def test_a_module_that_is_missing_is_a_finding() -> None:
    ((_, found), (_, after)) = examine(
        Context(), {"a": "tailor.doctor.checks.none:check", "last": CODE["last"]}
    )
    assert "No module named" in found.message
    assert after.message == "done"


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_without_a_recipe_finds_nothing_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that runs these tests."""
    monkeypatch.setattr("tailor.doctor.checks.gpu.has_device", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = [one for _, one in examine(Context(offline=True), {name: CHECKS[name]})]
    assert [one for one in found if one.status == "failed"] == []
    assert not [one for one in found if "check failed" in one.message]
