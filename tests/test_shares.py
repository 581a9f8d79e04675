"""A folder that several workers write together."""

from __future__ import annotations

import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from tailor.store.shares import SharedPublication, begin

from tailor.errors import StoreError
from tailor.store import Store, verified


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))
    return Store(tmp_path / "run" if request.param == "local" else f"memory://{uuid.uuid4().hex}/run")


def shares(store: Store, world: int = 3) -> list[SharedPublication]:
    token = begin(store, "made")
    made = [SharedPublication(store, "made", token=token, rank=rank, world=world) for rank in range(world)]
    for rank, share in enumerate(made):
        (share.folder / f"part-{rank}").write_text(f"of {rank}")
    return made


def test_it_appears_when_every_share_is_there(store: Store) -> None:
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
    assert sorted(store.read_json("made/COMMIT")) == ["part-0", "part-1", "part-2"]
    assert store.names() == ["made"]


def test_a_share_that_fails_keeps_the_folder_from_appearing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = shares(store, 2)

    def full(*_: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(SharedPublication, "_hand_over", full)
    with pytest.raises(StoreError, match="the disk is full"):
        second.commit()
    monkeypatch.undo()
    with pytest.raises(StoreError, match="the share of worker 1 is missing: the disk is full"):
        first.commit()
    assert not store.is_committed("made")
    store.sweep()
    assert store.names() == [], "the next run removes what is left"


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    with pytest.raises(
        StoreError, match=r"worker 1 does not see .*set save.to to a folder that every worker sees"
    ):
        SharedPublication(store, "made", token=".tmp-made-elsewhere", rank=1, world=2)


def test_a_worker_of_an_earlier_attempt_hands_nothing_over(store: Store) -> None:
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
    assert sorted(store.read_json("made/COMMIT")) == ["part-0", "part-1"]
