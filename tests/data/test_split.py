"""A split opens only the shards that it needs, and its columns are those of the whole."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tailor.data import split as splits
from tailor.data.blocks import Blocks, measure
from tailor.data.shards import Shard
from tailor.data.split import Split
from tailor.data.token_store import ShardWriter, ragged
from tailor.errors import StoreError

LENGTHS = np.random.default_rng(3).integers(1, 40, 60)
SIZES = (17, 1, 30, 12)


class Folder:
    """Four shards. opened: how often the path of each was asked for."""

    def __init__(self, folder: Path) -> None:
        self.opened: Counter[int] = Counter()
        self.paths = [folder / f"train-{number:05d}.arrow" for number in range(len(SIZES))]
        self.positions = np.zeros(60, int)
        first = 0
        for number, (path, size) in enumerate(zip(self.paths, SIZES, strict=True)):
            writer = ShardWriter(path)
            for part in np.array_split(np.arange(first, first + size), 2):  # two record batches
                lengths = LENGTHS[part]
                self.positions[part] = np.arange(len(part)) % 2
                writer.write(
                    ragged(np.repeat(part, lengths), lengths),
                    ragged(np.stack([lengths // 2, lengths], 1).reshape(-1), np.full(len(part), 2)),
                    number,
                    part - first + 1,
                    positions=self.positions[part],
                    is_positive=part % 3 > 0,
                )
            writer.close()
            first += size

    def split(self, counted: bool = True) -> Split:
        def path(number: int) -> Path:
            self.opened[number] += 1
            return self.paths[number]

        return Split(
            [
                Shard(partial(path, number), 0, [f"{number}.jsonl"], [], size if counted else None)
                for number, size in enumerate(SIZES)
            ]
        )


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_examples_and_parts_of_columns_open_their_shards_only(folder: Folder) -> None:
    split = folder.split()
    assert len(split) == 60
    assert not folder.opened
    assert split.example(20).input_ids.tolist() == [20] * LENGTHS[20]
    assert str(split.row_id(20)) == "source 2 2.jsonl:3"
    assert split.column("lengths")[18:48].tolist() == LENGTHS[18:48].tolist()
    assert split.column("lengths")[[47, 18, 18]].tolist() == LENGTHS[[47, 18, 18]].tolist()
    assert folder.opened == {2: 1}
    assert split.lengths.tolist() == LENGTHS.tolist()  # control: a whole column opens all
    assert folder.opened == dict.fromkeys(range(4), 1)


def test_parts_of_columns_are_those_of_the_whole(folder: Folder) -> None:
    split = folder.split(counted=False)
    draw = np.random.default_rng(0)
    for name in ("lengths", "supervised", "source", "position", "row", "is_positive"):
        whole, column = getattr(split, name), split.column(name)
        assert (np.asarray(column) == whole).all()
        assert len(column) == 60
        for start, stop in ((0, 60), (3, 50), (17, 18), (16, 19), (5, 5), (40, 99)):
            assert column[start:stop].tolist() == whole[start:stop].tolist()
            assert column[start:stop].dtype == whole.dtype or start == stop
        some = draw.integers(0, 60, 25)
        assert column[some].tolist() == whole[some].tolist()
        assert column[some.tolist()].dtype == whole.dtype
        assert column[33] == whole[33]
    assert [split.example(at).is_positive for at in range(60)] == split.is_positive.tolist()


def test_few_shards_stay_open(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "OPEN_SHARDS", 2)
    split = folder.split()
    for _ in range(2):
        assert [split.example(at).input_ids[0] for at in (0, 17, 20, 50)] == [0, 17, 20, 50]
    assert folder.opened == dict.fromkeys(range(4), 2)


def test_the_table_of_blocks_is_measured_where_there_is_none(folder: Folder) -> None:
    split = folder.split()
    ends = np.cumsum(SIZES)
    supervised = np.asarray(split.supervised)
    parts = [slice(end - size, end) for size, end in zip(SIZES, ends, strict=True)]
    sources = np.repeat(np.arange(4), SIZES)
    columns = (LENGTHS, supervised, sources, folder.positions)
    expected = Blocks.join(measure(*(column[part] for column in columns), 64) for part in parts)
    found = split.blocks(64)
    assert found.first.tolist() == expected.first.tolist() == [0, 17, 18, 48]
    assert found.rows.tolist() == expected.rows.tolist()
    assert found.supervised.tolist() == expected.supervised.tolist()


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_shard_is_named(folder: Folder, damage: str) -> None:
    path = folder.paths[2]
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(content[:100])
    split = folder.split()
    assert split.example(3).input_ids[0] == 3
    with pytest.raises(StoreError, match=r"train-00002\.arrow cannot be read") as caught:
        split.example(20)
    assert "prepares the tokens again" in (caught.value.hint or "")
