"""A folder that several workers write together."""

from __future__ import annotations

import re
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from tailor.errors import StoreError
from tailor.store import Store, verified
from tailor.store.sharded_publication import ShardedPublication, begin


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))
    return Store(tmp_path / "run" if request.param == "local" else f"memory://{uuid.uuid4().hex}/run")


def is_part(name: str) -> bool:
    return name == "COMMIT" or name.startswith(("part-", ".share-"))


def shares(store: Store, world: int = 3) -> list[ShardedPublication]:
    token = begin(store, "made", is_part)
    made = [ShardedPublication(store, "made", token=token, rank=rank, world=world) for rank in range(world)]
    for rank, share in enumerate(made):
        (share.folder / f"part-{rank}").write_text(f"of {rank}")
    return made


def test_the_folder_appears_when_all_files_are_there(store: Store) -> None:
    first, *others = shares(store)
    before: list[bool] = []
    thread = threading.Thread(target=first.commit, args=(lambda: before.append(store.is_committed("made")),))
    thread.start()
    for share in others:
        time.sleep(0.2)
        assert thread.is_alive(), "rank 0 waits"
        assert not store.is_committed("made")
        share.commit()
    thread.join(timeout=10)
    assert before == [False, False]  # before anything is handed over, and before the marker
    assert store.is_committed("made")
    with verified(store, "made") as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["COMMIT", "part-0", "part-1", "part-2"]
        assert [(folder / f"part-{rank}").read_text() for rank in range(3)] == ["of 0", "of 1", "of 2"]
    assert sorted(store.read_json("made/COMMIT")["files"]) == ["part-0", "part-1", "part-2"]
    assert store.names() == ["made"]


def test_the_folder_does_not_appear_when_a_worker_fails(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = shares(store, 2)

    def full(*_: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(ShardedPublication, "_move_files", full)
    with pytest.raises(StoreError, match="the disk is full"):
        second.commit()
    monkeypatch.undo()
    with pytest.raises(StoreError, match=r"worker 1 failed to write its files of .*: the disk is full"):
        first.commit()
    assert not store.is_committed("made")
    store.sweep(re.compile("made"), is_part)
    assert store.names() == [], "the next run removes what is left"


def test_a_worker_that_does_not_see_the_folder_raises(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    with pytest.raises(
        StoreError,
        match=r"worker 1 does not see the folder .*set save.to to a shared file system that every worker can access",
    ):
        ShardedPublication(store, "made", token=".tmp-made-elsewhere", rank=1, world=2)


def test_a_worker_of_an_earlier_attempt_has_no_effect(store: Store) -> None:
    _, late = shares(store, 2)
    first, second = shares(store, 2)
    (late.folder / "of-before").write_text("stale")
    late.commit()
    thread = threading.Thread(target=first.commit)
    thread.start()
    time.sleep(0.3)
    assert thread.is_alive(), "it waits for the worker of its own attempt"
    second.commit()
    thread.join(timeout=10)
    assert sorted(store.read_json("made/COMMIT")["files"]) == ["part-0", "part-1"]
