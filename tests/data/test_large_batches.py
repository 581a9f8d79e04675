"""Large splits are batched window by window: the same promises as for small ones, without a list of the epoch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailor.data import blocks, epoch_order, large_batches
from tailor.data.batches import Batches
from tailor.data.blocks import Blocks, measure
from tailor.data.large_batches import LargeBatches
from tailor.data.rows import StreamSlice, micro_batches, share
from tailor.errors import DataError
from tailor.plan.batches import BatchSpec
from tailor.store import Store
from tests.helpers.large_splits import Repeated, repeated

DRAW = np.random.default_rng(5)
EXAMPLES, SHARDS = 6_000, 20
LENGTHS = np.clip(DRAW.lognormal(3.3, 0.8, EXAMPLES), 2, 128).astype(np.int64)
SOURCES = np.repeat([0, 1, 2], [3900, 1800, 300])
SINGLE = np.zeros(EXAMPLES, np.int16)
GROUPED = np.tile(np.array([0, 1, 0, 0, 1, 2], np.int16), EXAMPLES // 6)
"""Pairs, single examples and groups of three, none over the end of a shard."""
MODES: dict[str, dict[str, Any]] = {
    "packed": {"pack": True, "batch_size": 16},
    "packed, tokens": {"pack": True, "batch_tokens": 2048},
    "alone": {"pack": False, "batch_size": 12},
    "beacon windows": {"pack": False, "batch_size": 12, "window": 16},
    "joined": {"pack": False, "join": True, "batch_size": 16},
}
WEIGHTS: dict[str, dict[str, Any]] = {
    "once": {},
    "rows": {"weights": (0.5, 2.25, 0.1)},
    "tokens": {"weights": (1.0, 3.0, 0.5), "weight_by": "tokens"},
    "samples": {"weights": (1.0, 1.0, 1.0), "samples": (0, 350, 0)},
}


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 1,024 groups and blocks of 64, so that 6,000 examples have several."""
    for module, name, value in (
        (epoch_order, "WINDOW", 1024),
        (epoch_order, "MIN_DRAWN", 8),
        (epoch_order, "GROUP_WINDOW", 16),
        (blocks, "BLOCK", 64),
        (blocks, "MIN_ROWS", 8),
        (large_batches, "PACKED", 512),
    ):
        monkeypatch.setattr(module, name, value)


def make(positions: np.ndarray = SINGLE, lengths: np.ndarray = LENGTHS, **spec: Any) -> LargeBatches:
    settings = BatchSpec(**{"seed": 3, "max_length": 128, **spec})
    parts = np.split(np.arange(EXAMPLES), SHARDS)
    table = Blocks.join(
        measure(lengths[part], lengths[part] - 1, SOURCES[part], positions[part], settings.max_length)
        for part in parts
    )
    return LargeBatches(lengths, lengths - 1, SOURCES, positions, settings, lambda: table)


def shown(batches: LargeBatches, epoch: int = 0) -> np.ndarray:
    """int[examples]: how often an epoch shows each example."""
    examples = [example for batch in batches.epoch(epoch) for row in batch for example in row]
    return np.bincount(examples, minlength=EXAMPLES)


def rows_of(batches: LargeBatches, epoch: int = 0) -> Iterator[Any]:
    for batch in batches.epoch(epoch):
        yield from batch


@pytest.mark.parametrize("positions", [SINGLE, GROUPED], ids=["single", "groups"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "joined"])
def test_an_epoch_shows_each_group_as_often_as_the_weights_say(
    mode: str, weights: str, positions: np.ndarray
) -> None:
    batches = make(positions, **MODES[mode], **WEIGHTS[weights])
    starts = np.flatnonzero(positions == 0)
    group = np.cumsum(positions == 0) - 1
    sizes, source = np.bincount(group, weights=LENGTHS), SOURCES[starts]
    for epoch in range(2):
        counts = shown(batches, epoch)
        assert (counts == counts[starts][group]).all()  # groups are whole
        of_group = counts[starts]
        for number in range(3):
            own = of_group[source == number]
            assert own.max() - own.min() <= 1
            if weights == "once":
                assert set(own.tolist()) == {1}
            if weights == "rows":
                assert own.sum() == round(len(own) * WEIGHTS["rows"]["weights"][number])
            if weights == "samples" and number == 1:
                assert own.sum() == 350
        if weights == "tokens":
            wanted = LENGTHS.sum() * np.array([1.0, 3.0, 0.5]) / 4.5
            found = np.bincount(source, weights=of_group * sizes)
            assert np.abs(found - wanted).max() <= sizes.max()  # within one row
    if weights not in ("once",):
        assert (shown(batches, 0) != shown(batches, 1)).any()  # another part in the next epoch


@pytest.mark.parametrize("weights", WEIGHTS)
def test_joined_rows_have_every_token_of_a_window_but_its_first_as_a_target(weights: str) -> None:
    batches = make(**MODES["joined"], **WEIGHTS[weights])
    for epoch in range(2):
        order = batches._order(epoch)
        rows = list(rows_of(batches, epoch))
        assert all(isinstance(row, StreamSlice) for row in rows)
        total = sum(map(batches.length, rows))
        assert total == order.tokens == order.entries.tokens.sum() - len(order)
        targets = np.zeros(EXAMPLES, int)
        for row in rows:
            for example, start, stop in row.stream.pieces(row.start + 1, row.stop + 1):
                targets[example] += stop - start
        wanted = np.bincount(SOURCES[np.arange(EXAMPLES)], weights=targets)
        assert np.abs(wanted - batches_tokens(batches, epoch)).max() <= len(order)


def batches_tokens(batches: LargeBatches, epoch: int) -> np.ndarray:
    return np.array(batches._order(epoch).source_tokens(3))


@pytest.mark.parametrize("weights", ["once", "tokens"])
@pytest.mark.parametrize("mode", MODES)
def test_a_step_is_the_same_in_any_order_of_calls_and_for_any_number_of_workers(
    mode: str, weights: str
) -> None:
    def plain(batch: list[Any]) -> list[Any]:
        return [row.pieces if isinstance(row, StreamSlice) else row for row in batch]

    forward, settings = make(**MODES[mode], **WEIGHTS[weights]), {**MODES[mode], **WEIGHTS[weights]}
    per_epoch = len(forward.epoch(0))
    steps = [forward.batch(step) for step in range(per_epoch + 20)]
    for step in (per_epoch + 19, per_epoch - 1, per_epoch // 2, per_epoch, 0):
        resumed = make(**settings)  # another process, which starts at this step
        assert plain(resumed.batch(step)) == plain(steps[step])
    for world in (2, 5):
        shares = [share(steps[7], 3, rank, world) for rank in range(world)]
        found = {number: rows for part in shares for number, rows in part if rows}
        assert found == dict(enumerate(micro_batches(steps[7], 3)))
    assert plain(make(**{**settings, "seed": 4}).batch(3)) != plain(steps[3])  # control


@pytest.mark.parametrize("mode", MODES)
def test_only_one_batch_of_an_epoch_is_smaller(mode: str) -> None:
    settings = {**MODES[mode]}
    if "batch_size" in settings:
        settings["batch_size"] = 11
    batches = make(**settings)
    sizes = [len(batch) for batch in batches.epoch(0)]
    assert len(batches._order(0)) > 4
    full = batches.max_rows()
    assert full == settings.get("batch_size", 16) == sizes[0]
    smaller = [at for at, size in enumerate(sizes) if size < full]
    assert len(smaller) == 1
    assert smaller[0] == len(sizes) - 1 or not (batches.spec.pack or batches.spec.join)
    assert sum(sizes) == full * (len(sizes) - 1) + sizes[smaller[0]]


@pytest.mark.parametrize("weights", ["once", "rows"])
@pytest.mark.parametrize("mode", MODES)
def test_the_facts_of_an_epoch_are_those_of_its_batches(mode: str, weights: str) -> None:
    batches = make(**MODES[mode], **WEIGHTS[weights])
    epoch = batches.epoch(0)
    tokens = [batches.tokens(batch) for batch in epoch]
    assert batches.epoch_tokens() == (sum(tokens), sum(map(batches.supervised_tokens, epoch)))
    assert abs(sum(batches.source_tokens(3)) - sum(tokens)) <= len(batches._order(0))
    rows = list(rows_of(batches))
    assert max(map(batches.length, rows)) <= batches.longest_row() <= 128
    assert batches.longest() == (128 if mode == "joined" else LENGTHS.max())
    assert batches.steps(2.5) == len(epoch) + len(batches.epoch(1)) + round(len(batches.epoch(2)) / 2)
    assert batches.progress(len(epoch)) == 1
    total, steps = np.cumsum(tokens), [1, 5, len(epoch) // 2, len(epoch) - 1, len(epoch)]
    for step in steps:  # also across windows, and at the exact end of a batch
        before = int(total[step - 1])
        assert batches.steps_to(before) == (step, before)
        if step < len(epoch):
            assert batches.steps_to(before + 1) == (step + 1, total[step])
    assert batches.steps_to(int(total[-1]) + 1)[0] == len(epoch) + 1


@pytest.mark.parametrize("mode", ["packed", "alone"])
def test_the_first_batch_has_the_longest_group(mode: str) -> None:
    lengths = np.minimum(LENGTHS, 100)
    lengths[4321] = 127
    first = make(lengths=lengths, **MODES[mode]).batch(0)
    assert any(4321 in row for row in first)
    assert not any(4321 in row for row in make(lengths=lengths, **MODES[mode]).batch(1))  # control


@pytest.mark.parametrize("weights", [{}, {"weights": (0.5, 2.0, 1.5)}], ids=["once", "weights"])
def test_a_window_may_have_as_many_groups_as_the_split_has_examples(
    monkeypatch: pytest.MonkeyPatch, weights: dict[str, Any]
) -> None:
    monkeypatch.setattr(epoch_order, "WINDOW", 2 * EXAMPLES)
    batches = make(**MODES["packed"], **weights)
    groups = batches._order(0).window(0)[0]
    assert len(groups) == EXAMPLES
    assert (groups.starts != np.arange(EXAMPLES)).any()  # another order than that of the store
    assert max(map(batches.length, rows_of(batches))) <= 128
    counts = shown(batches)
    assert [counts[number == SOURCES].sum() for number in range(3)] == (
        [1950, 3600, 450] if weights else [3900, 1800, 300]
    )


@pytest.mark.parametrize("positions", [SINGLE, GROUPED], ids=["single", "groups"])
def test_packed_rows_are_as_full_as_those_of_one_list(positions: np.ndarray) -> None:
    def fill(batches: Batches) -> float:
        rows = [row for batch in batches.epoch(0) for row in batch]
        assert max(map(batches.length, rows)) <= max(128, batches.longest_row())
        return float(LENGTHS.sum() / 128 / len(rows))

    large = fill(make(positions, **MODES["packed"]))
    spec = BatchSpec(seed=3, max_length=128, **MODES["packed"])
    listed = fill(Batches(LENGTHS, LENGTHS - 1, SOURCES, spec, positions))
    alone = LENGTHS.sum() / 128 / EXAMPLES
    assert listed - 0.05 < large <= listed  # blocks of 64 groups here; of 1,024, the difference is 0.003
    assert alone < 0.4  # control


@pytest.mark.parametrize("positions", [SINGLE, GROUPED], ids=["single", "groups"])
def test_where_a_window_packs_worse_than_its_blocks_the_blocks_are_packed(
    monkeypatch: pytest.MonkeyPatch, positions: np.ndarray
) -> None:
    """Best-fit packing of a union may need more rows. The number of steps must hold all the same."""
    normal = make(positions, **MODES["packed"])
    rows = list(rows_of(normal))
    monkeypatch.setattr(large_batches, "PACKED", 1)  # no two groups share a row
    worse = make(positions, **MODES["packed"])
    assert len(list(rows_of(worse))) == len(rows) == worse._order(0).row_edges[-1]
    assert (shown(worse) == 1).all()
    assert list(rows_of(worse)) != rows


def test_every_window_has_the_sources_in_the_proportions_of_the_mixture() -> None:
    batches = make(**MODES["alone"], weights=(0.5, 2.0, 5.0))
    order = batches._order(0)
    share_of = np.array([1950, 3600, 1500]) / 7050
    for number in range(len(order) - 1):
        groups = order.window(number)[0]
        found = np.bincount(SOURCES[groups.starts], minlength=3) / len(groups)
        assert np.abs(found - share_of).max() < 0.25
    stored = np.bincount(SOURCES[:1024], minlength=3) / 1024
    assert np.abs(stored - share_of).max() > 0.6  # control: the order of the store


def test_a_window_mixes_many_blocks_but_needs_few_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 shards of 256 examples: a window has 16 blocks, of `SPREAD` shards and those of the window itself."""

    def needed(batches: LargeBatches) -> list[int]:
        order = batches._order(0)
        windows = [order.window(number)[0].starts // 256 for number in range(len(order))]
        return [len(np.unique(shards)) for shards in windows]

    monkeypatch.setattr(epoch_order, "SPREAD", 8)
    monkeypatch.setattr(blocks, "MIN_ROWS", 1)
    spec = BatchSpec(seed=1, max_length=128, pack=True, batch_size=8)
    few = needed(repeated(spec, LENGTHS[:256], 200))
    assert 8 < max(few) <= 14
    order = repeated(spec, LENGTHS[:256], 200)._order(0)
    assert len(np.unique(order.window(3)[0].starts // 64)) == 16
    monkeypatch.setattr(epoch_order, "SPREAD", 200)  # control: blocks from anywhere
    assert np.mean(needed(repeated(spec, LENGTHS[:256], 200))) > 15


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_reads_its_windows_and_the_number_of_steps_reads_nothing(mode: str) -> None:
    spec = BatchSpec(seed=1, max_length=128, **MODES[mode])
    reads, scans = [], []
    for shards in (20, 400):
        batches = repeated(spec, LENGTHS[:1024], shards)
        columns = [batches.lengths, batches.supervised, batches.sources, batches.positions]
        assert all(isinstance(column, Repeated) for column in columns)
        steps = batches.steps(3)
        batches.epoch_tokens(), batches.source_tokens(1), batches.progress(steps - 1), batches.longest_row()
        batches.max_rows()
        assert sum(column.read for column in columns) == 0  # type: ignore[union-attr]
        batches.batch(steps // 2)
        reads.append(sum(column.read for column in columns))  # type: ignore[union-attr]
        assert batches.steps_to(batches.epoch_tokens()[0] // 2)[0] > 4
        scans.append(sum(column.read for column in columns) - reads[-1])  # type: ignore[union-attr]
    assert max(reads) < 8 * 1024  # at most two windows of two columns, and the blocks at their edges
    assert max(scans) < 16 * 1024  # `train.tokens`: the windows around the last step
    column = Repeated(LENGTHS[:1024], 20)
    Batches(column[:], column[:], column[:], spec).steps(1)
    assert column.read == 3 * 20 * 1024  # control: a list of the epoch needs all of them


def test_memory_is_a_few_bytes_per_thousand_examples() -> None:
    """Arrays of the table and of two epochs, and the rows of three windows."""
    spec = BatchSpec(seed=1, max_length=128, pack=True, batch_size=8)
    used = []
    for shards in (100, 200):
        batches = repeated(spec, LENGTHS[:1024], shards)
        parts = [batches._blocks, batches._order(0).entries, batches._order(1).entries]
        used.append(sum(getattr(part, field.name).nbytes for part in parts for field in fields(part)))
    per_block = (used[1] - used[0]) / (len(batches._blocks) / 2)
    assert per_block <= 8 * (len(fields(Blocks)) + 2 * 7)  # so 10^6 examples, 1,000 blocks, take 190 kB
    for step in range(0, len(batches.epoch(0)), 50):
        batches.batch(step)
    assert batches._window.cache_info().currsize == 3
    assert batches._epoch.cache_info().currsize <= 2


def test_a_weight_whose_epoch_does_not_fit_into_memory_is_an_error() -> None:
    with pytest.raises(
        DataError, match=r"data\.train\[2\]\.weight: an epoch would show its 300 rows 1e\+08"
    ) as caught:
        len(make(**MODES["packed"], weights=(1.0, 1.0, 1e8)).epoch(0))
    assert "train.epochs" in (caught.value.hint or "")


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    store, table = Store(str(tmp_path)), make(**MODES["packed"])._blocks
    table.write(store, "blocks.arrow", 128)
    found = Blocks.read(store, "blocks.arrow", 128)
    assert found is not None
    assert all((getattr(found, one.name) == getattr(table, one.name)).all() for one in fields(Blocks))
    assert Blocks.read(store, "blocks.arrow", 64) is None  # the rows of another length


def test_blocks_have_whole_groups_of_one_source() -> None:
    table = make(GROUPED, **MODES["packed"])._blocks
    ends = table.first + table.examples
    assert (table.first[1:] == ends[:-1]).all()
    assert ends[-1] == EXAMPLES
    assert (GROUPED[table.first] == 0).all()
    assert all(len(set(SOURCES[first:end])) == 1 for first, end in zip(table.first, ends, strict=True))
    assert (np.add.reduceat(LENGTHS, table.first) == table.tokens).all()
    assert table.groups.max() < 64 + 8 * 128  # short groups, until they fill `MIN_ROWS` rows


def test_long_documents_make_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MAX_ROWS", 100)
    lengths, nothing = np.full(60, 128 * 30), np.zeros(60, int)
    table = measure(lengths, lengths, nothing, nothing, 128)
    assert table.groups.tolist() == [3] * 20
    assert measure(np.full(3, 10**9), lengths[:3], nothing[:3], nothing[:3], 128).groups.tolist() == [1, 1, 1]


def vectorized_coverage(examples: int, mode: str, arranged: int = 1) -> None:
    """Each example of a split in exactly one window, with the real constants.

    As many are counted as there are, and none is missing: so none is there twice. Every `arranged`-th window is made into rows,
    of exactly its examples and as many as the table says. So is the last.
    """
    spec = BatchSpec(seed=1, max_length=2048, **MODES[mode])
    shard = np.clip(DRAW.lognormal(5.5, 0.9, 8192), 8, 2048).astype(np.int64)
    batches = repeated(spec, shard, examples // len(shard))
    seen, count = np.zeros(len(batches.lengths), np.bool_), 0
    order = batches._order(0)
    counts = np.diff(order.row_edges if spec.pack else order.batch_edges)
    for number in range(len(order)):
        groups = order.window(number)[0]
        seen[groups.starts] = True
        count += len(groups)
        if number % arranged and number < len(order) - 1:
            continue
        window = batches._window(0, number)
        rows = window if spec.pack else itertools.chain.from_iterable(window)
        found = np.fromiter(itertools.chain.from_iterable(rows), np.int64)
        assert (np.sort(found) == np.sort(groups.starts)).all()
        assert len(window) == counts[number]
    assert seen.all()
    assert count == len(seen)


@pytest.fixture
def real_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()


@pytest.mark.parametrize("mode", ["packed"])
def test_every_example_of_a_million_is_shown_once(mode: str, small_windows: None, real_windows: None) -> None:
    assert epoch_order.WINDOW == 1 << 17
    vectorized_coverage(10**6, mode, arranged=4)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mode", ["packed", "alone"])
def test_every_example_of_a_hundred_million_is_in_one_window(
    mode: str, small_windows: None, real_windows: None
) -> None:
    """Of about 760 windows, 78 are made into rows."""
    vectorized_coverage(10**8, mode, arranged=10)
