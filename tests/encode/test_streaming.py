"""Shards of a remote store are fetched when a window needs them. Nothing of this changes a batch."""

from __future__ import annotations

import uuid
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tailor.data import blocks, epoch_order
from tailor.data.ahead import Ahead
from tailor.data.batches import Batches
from tailor.data.blocks import Blocks
from tailor.data.facts import of_split
from tailor.data.large_batches import LargeBatches
from tailor.data.rows import Row, StreamSlice, examples_of
from tailor.data.token_store import MANIFEST, TokenStore
from tailor.encode import sources, tasks
from tailor.errors import StoreError
from tailor.plan.batches import BatchSpec
from tailor.store import Store, file_cache
from tests.helpers.faulty_storage import Fault, faults
from tests.helpers.preparation import contents, talk, write

SPEC = BatchSpec(seed=1, max_length=256, pack=True, batch_size=2)
SHARDS = r"train-\d+\.arrow"


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """23 shards of about 9 rows, in windows of 20."""
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))
    for module, name, value in (
        (sources, "PART_BYTES", 1000),
        (epoch_order, "WINDOW", 20),
        (epoch_order, "SPREAD", 4),
        (blocks, "BLOCK", 3),
        (blocks, "MIN_ROWS", 1),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def remote(bench: Any) -> str:
    return str(bench(store=f"faulty://{uuid.uuid4().hex}").tokens.url)


def batches_of(url: str) -> LargeBatches:
    batches = of_split(TokenStore.open(url).split("train"), SPEC)
    assert isinstance(batches, LargeBatches)
    return batches


def wait(batches: LargeBatches, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the fetching of the next window part of the present one."""
    later = Ahead.later
    monkeypatch.setattr(Ahead, "later", lambda ahead, shards: later(ahead, shards).join())


def test_a_run_starts_after_its_first_windows(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Fault("read", SHARDS)
    with faults(reads):
        batches = batches_of(remote)
        wait(batches, monkeypatch)
        assert batches.steps(3) > 3
        assert reads.met == 0  # the plan of a run reads the table only
        order = batches._order(0)
        needed = {*order.shards(0), *order.shards(1)}
        batches.batch(0)
        assert reads.met == len(needed) < 15
        shards = TokenStore.open(remote).split("train")
        assert shards.lengths.sum()
        assert shards.shards > 20
        assert reads.met == shards.shards  # control: a whole column needs all, and the others were here


def test_a_window_of_the_list_has_only_the_shards_that_it_names(remote: str) -> None:
    batches = batches_of(remote)
    order, starts = batches._order(0), TokenStore.open(remote).split("train").shard_starts
    for number in range(len(order)):
        examples = order.window(number)[0].starts
        assert {int((starts <= example).sum()) - 1 for example in examples} == set(order.shards(number))


@pytest.mark.parametrize("free", [1, 1 << 40])
def test_the_batches_are_those_of_a_local_store(
    bench: Any, remote: str, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    """With a cache that keeps one file, and with one that keeps all."""
    monkeypatch.setattr(file_cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    reads = Fault("read", SHARDS)
    local = bench().tokens
    with faults(reads):
        batches, expected = batches_of(remote), batches_of(local.url)
        wait(batches, monkeypatch)
        for epoch in range(2):
            assert list(batches.epoch(epoch)) == list(expected.epoch(epoch))
        assert contents(TokenStore.open(remote)) == contents(local)
    shards = local.split("train").shards
    assert reads.met == shards if free > 1 else reads.met > 2 * shards


def test_splits_of_more_examples_than_a_window_are_large(bench: Any) -> None:
    bench.rows = write(bench.folder / "rows.jsonl", [talk(number) for number in range(21)])
    tokens = bench(evaluation=[{"path": write(bench.folder / "short.jsonl", [talk(1)] * 20)}]).tokens
    train, evaluation = of_split(tokens.split("train"), SPEC), of_split(tokens.split("evaluation"), SPEC)
    assert isinstance(train, LargeBatches)
    assert not isinstance(evaluation, LargeBatches)
    for batches, count in ((train, 21), (evaluation, 20)):
        for epoch in range(2):
            rows = [row for batch in batches.epoch(epoch) for row in batch]
            assert sorted(example for row in rows for example in examples_of(row)) == list(range(count))


def test_the_rows_of_a_large_evaluation_split_are_those_of_a_list(bench: Any) -> None:
    split = bench().tokens.split("train")

    def plain(rows: list[Row]) -> list[Any]:
        return [row.pieces if isinstance(row, StreamSlice) else row for row in rows]

    for mode in ({"pack": True}, {"pack": False}, {"pack": False, "join": True}):
        spec = BatchSpec(seed=1, max_length=256, batch_size=2, **mode)
        large = of_split(split, spec)
        listed = Batches(split.lengths, split.supervised, split.source, spec, split.position)
        assert isinstance(large, LargeBatches)
        assert plain(large.rows()) == plain(listed.rows())
        assert large.longest_row(evaluation=True) >= listed.longest_row(evaluation=True)


@pytest.mark.parametrize("where", ["local", "remote"])
def test_a_store_of_an_earlier_version_is_used_as_it_is(bench: Any, remote: str, where: str) -> None:
    """It has no table of blocks and no checksums. The table is made when it is opened."""
    if where == "remote":
        bench.store = remote.rpartition("/")[0]
    url = bench().tokens.url
    expected = [list(batches_of(url).epoch(epoch)) for epoch in range(2)]
    store = Store(url)
    manifest = store.read_json(MANIFEST)
    for shard in manifest["shards"]:
        del shard["bytes"], shard["checksum"]
    store.write_json(MANIFEST, manifest)
    for split in ("train", "evaluation"):
        store.remove(f"{split}-blocks.arrow")
    again = bench()
    assert again.reused
    assert [list(batches_of(url).epoch(epoch)) for epoch in range(2)] == expected
    assert not store.exists("train-blocks.arrow")


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "short"])
def test_a_damaged_table_is_named(bench: Any, damage: str) -> None:
    url = bench().tokens.url
    file = Path(url, "train-blocks.arrow")
    whole, split = file.read_bytes(), TokenStore.open(url).split("train")
    if damage == "short":  # such as that of another store
        table = split.blocks(256)
        Blocks.of_columns([getattr(table, one.name)[:-1] for one in fields(Blocks)]).write(
            Store(url), file.name, 256
        )
    else:
        file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "other": b"x" * 500}[damage])
    with pytest.raises(StoreError, match=r"train-blocks\.arrow (cannot be read|has other numbers)") as caught:
        batches_of(url).steps(1)
    assert f"remove {url} and" in str(caught.value.hint)


def test_what_cannot_be_fetched_in_advance_is_an_error_when_it_is_read(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = batches_of(remote)
    wait(batches, monkeypatch)
    order = batches._order(0)
    name = next(shard for shard in order.shards(1) if shard not in order.shards(0))
    with faults(Fault("read", f"train-{name:05d}", lambda: PermissionError("no"))):
        batches.batch(0)
        with pytest.raises(StoreError, match=f"train-{name:05d}"):
            list(batches.epoch(0))
    assert len(list(batches.epoch(0))) == len(batches.epoch(0))  # the store is back


def test_a_task_writes_several_shards_of_bounded_size(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PART_BYTES", 1 << 20)
    one = bench(store=bench.store + "1").tokens
    monkeypatch.setattr(tasks, "SHARD_TOKENS", 1000)
    monkeypatch.setattr(tasks, "_BATCH_ROWS", 8)
    several = bench(store=bench.store + "2").tokens
    names = [shard["name"] for shard in several.manifest["shards"]]
    assert len(one.manifest["shards"]) == 1
    assert names[:3] == ["train-00000.arrow", "train-00000-1.arrow", "train-00000-2.arrow"]
    assert contents(several) == contents(one)
    assert several.manifest["report"] == one.manifest["report"]
    split = several.split("train")
    table = split.blocks(256)
    assert len(set(table.shard.tolist())) == split.shards == len(names)
    assert (
        table.tokens
        == [
            split.column("lengths")[a : a + n].sum() for a, n in zip(table.first, table.examples, strict=True)
        ]
    ).all()
    assert max(shard["bytes"] for shard in several.manifest["shards"]) < 20_000
