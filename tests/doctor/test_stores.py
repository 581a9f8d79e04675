"""The rights of stores: a temporary object is written and removed, everything else stays."""

from __future__ import annotations

import re
import time

import fsspec
import pytest

from tailor.doctor.checks import stores
from tailor.doctor.finding import Context, Finding
from tailor.errors import StoreError
from tailor.store import Store
from tailor.store.probe import Probe, probe
from tests.doctor.test_checks import recipe, statuses
from tests.helpers.faulty_storage import Fault, faults

URL = "faulty://store/runs/x"


def found(url: str = URL, *, offline: bool = False) -> list[Finding]:
    made = recipe(save={"to": url}, data={"store": url, "train": [{"path": "rows.jsonl"}]})
    return list(stores.check(Context(made, offline)))


def denied() -> Exception:
    return PermissionError("Access Denied")


def test_a_store_of_s3(s3: str) -> None:
    """A real protocol server: all rights, its clock, and no object is left or changed."""
    files = fsspec.filesystem("s3")
    files.pipe_file(f"{s3}/runs/x/.tmp-doctor-notes", b"a user's")
    assert statuses(found(f"{s3}/runs/x")) == ["ok"]
    ahead = probe(Store(f"{s3}/runs/x")).ahead
    assert ahead is not None
    assert abs(ahead) < 60
    files.invalidate_cache()
    assert [path.rsplit("/")[-1] for path in files.find(s3)] == [".tmp-doctor-notes"]
    (missing,) = {one.message for one in found("s3://no-such-bucket-here/x") if "write" in one.message}
    assert "no-such-bucket-here" in missing


@pytest.mark.parametrize("right", ["write", "read", "list", "delete"])
def test_each_right_is_named(right: str) -> None:
    Store(URL).write_text("kept.txt", "kept")
    operation = {"delete": "remove"}.get(right, right)
    where = r"runs/x$" if right == "list" else r"\.tmp-doctor-[0-9a-f]{8}"
    with faults(Fault(operation, where, denied)):
        lines = found()
    failed = [one.message for one in lines if one.status == "failed"]
    assert len(failed) == 1
    assert failed[0].startswith(f"data.store: cannot {right}: ") or failed[0].startswith(
        f"save.to: cannot {right}: "
    )
    left = [name for name in Store(URL).files() if "doctor" in name]
    assert Store(URL).read_text("kept.txt") == "kept"
    if right == "delete":
        (line,) = (one.message for one in lines if one.status == "warning")
        assert line.endswith(left[0])
        assert re.fullmatch(r"\.tmp-doctor-[0-9a-f]{8}", left[0])
        Store(URL).remove_temporary()
    else:
        assert left == []


@pytest.mark.parametrize(
    ("ahead", "status"), [(5.0, []), (-40.0, ["warning"]), (3600.0, ["failed"]), (None, [])]
)
def test_the_clock(ahead: float | None, status: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "probe", lambda _: Probe(ahead=ahead))
    lines = found()
    assert statuses(lines) == ["ok", *status]
    if status:
        word = "ahead of" if ahead and ahead > 0 else "behind"
        assert f" s {word} this machine's" in lines[-1].message


@pytest.mark.parametrize("off", [0.0, 3600.0, -3600.0])
def test_the_difference_of_the_clocks(off: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "modified", lambda *_: int(time.time() + off))
    ahead = probe(Store("memory://doctor/x")).ahead
    assert ahead is not None
    assert abs(ahead - off) < 60


def test_data_that_is_only_read_is_not_written() -> None:
    Store("faulty://store/data").write_text("a.jsonl", "{}")
    sources = [{"path": f"faulty://store/data/{name}.jsonl"} for name in ("a", "b", "*")]
    made = recipe(save={"to": "runs/x"}, data={"train": sources})
    with faults(Fault("write", "", denied)):
        lines = list(stores.check(Context(made)))
    assert [(one.status, one.message) for one in lines] == [
        ("ok", "data.train.0.path: faulty://store/data/a.jsonl can be read"),
        ("failed", "data.train.1.path: faulty://store/data/b.jsonl does not exist"),
    ]


def test_offline_sends_no_request() -> None:
    with faults(Fault("write", "", denied), Fault("list", "", denied)):
        assert statuses(found(offline=True)) == ["ok"]


def test_the_control_a_store_error_has_a_hint() -> None:
    with faults(Fault("write", "", denied)), pytest.raises(StoreError):
        Store(URL).write_text("x", "x")
