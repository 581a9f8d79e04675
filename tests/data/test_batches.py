"""Batches are a pure function of lengths, seed and step, and lose nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from tailor.data.batches import Batches
from tailor.data.packing import pack
from tailor.data.rows import micro_batches, share
from tailor.errors import DataError
from tailor.plan.batches import BatchSpec

LENGTHS = np.random.default_rng(0).integers(5, 100, size=500)


def make(lengths: np.ndarray = LENGTHS, sources: np.ndarray | None = None, **spec: Any) -> Batches:
    values = {"seed": 1, "max_length": 128, "pack": True, "batch_size": 8, **spec}
    if "batch_tokens" in spec:
        del values["batch_size"]
    sources = np.zeros(len(lengths), dtype=int) if sources is None else sources
    return Batches(lengths, lengths - 1, sources, BatchSpec(**values))


def shown(batches: Batches, epoch: int = 0) -> Counter[int]:
    return Counter(example for batch in batches.epoch(epoch) for row in batch for example in row)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("size", [{"batch_size": 8}, {"batch_tokens": 1000}])
def test_an_epoch_shows_every_example_once(pack: bool, size: dict[str, int]) -> None:
    batches = make(pack=pack, **size)
    assert shown(batches) == Counter(range(len(LENGTHS))) == shown(batches, 3)


@pytest.mark.parametrize("pack", [True, False])
def test_a_step_is_the_same_in_any_order_of_calls(pack: bool) -> None:
    forward, jumping = make(pack=pack), make(pack=pack)
    steps = [forward.batch(step) for step in range(150)]
    for step in (149, 3, 77, 0):
        assert jumping.batch(step) == steps[step]


def test_seed_and_epoch_change_the_order() -> None:
    assert make().epoch(0) != make(seed=2).epoch(0)
    assert make().epoch(0) != make().epoch(1)


def test_rows_fit_and_are_full() -> None:
    rows = [row for batch in make().epoch(0) for row in batch]
    filled = [int(LENGTHS[list(row)].sum()) for row in rows]
    assert max(filled) <= 128
    assert sum(filled) / (128 * len(rows)) > 0.97


def test_best_fit_takes_the_tightest_row() -> None:
    lengths = np.array([60, 50, 40, 30, 20])
    assert sorted(pack(np.arange(5), lengths, 100)) == [(0, 2), (1, 3, 4)]


def fitted(lengths: np.ndarray, capacity: int, tightest: bool) -> list[tuple[int, ...]]:
    """Rows of examples, the longest first: each in the first row of least room, or (the control) in the first with room."""
    rows: list[list[int]] = []
    for example in np.argsort(-lengths, kind="stable").tolist():
        room = [
            (capacity - int(lengths[row].sum()) - int(lengths[example]), at) for at, row in enumerate(rows)
        ]
        fits = [(free if tightest else 0, at) for free, at in room if free >= 0]
        if not fits:
            rows.append([])
        rows[min(fits)[1] if fits else -1].append(example)
    return [tuple(row) for row in rows]


def test_the_rows_of_best_fit_are_those_of_its_definition() -> None:
    """With equal lengths, and with examples longer than a row."""
    lengths = np.random.default_rng(2).integers(1, 140, size=300)
    packed = pack(np.arange(300), lengths, 128)
    assert packed == fitted(lengths, 128, tightest=True)
    assert packed != fitted(lengths, 128, tightest=False)


def test_unpacked_batches_have_examples_of_similar_length() -> None:
    def padding(batches: list[list[tuple[int, ...]]]) -> float:
        longest = [max(LENGTHS[row[0]] for row in batch) * len(batch) for batch in batches]
        return 1 - LENGTHS.sum() / sum(longest)

    grouped = make(pack=False).epoch(0)
    shuffled = np.random.default_rng(0).permutation(len(LENGTHS))
    control = [[(int(i),) for i in shuffled[start : start + 8]] for start in range(0, len(LENGTHS), 8)]
    assert padding(grouped) < 0.05 < 0.2 < padding(control)


def test_long_rows_are_filled_and_of_similar_length() -> None:
    """Lengths as of long-context data: many short ones, some of 80 thousand tokens."""
    capacity = 81_920
    draw = np.random.default_rng(0)
    lengths = np.exp(draw.uniform(np.log(1000), np.log(capacity), 400)).astype(int)
    rows = [row for batch in make(lengths, max_length=capacity).epoch(0) for row in batch]
    filled = [int(lengths[list(row)].sum()) for row in rows]
    assert max(filled) <= capacity
    assert sum(filled) / (capacity * len(rows)) > 0.97
    naive = sum(lengths) / (capacity * len(lengths))
    assert naive < 0.3, "control: a row for each example would be mostly empty"
    spread = [
        max(lengths[row[0]] for row in batch) / min(lengths[row[0]] for row in batch)
        for batch in make(lengths, max_length=capacity, pack=False).epoch(0)
    ]
    shuffled = draw.permutation(lengths)
    control = [max(part) / min(part) for part in np.split(shuffled, 50)]
    assert np.median(spread) < 1.2 < 5 < np.median(control)


@pytest.mark.parametrize("pack", [True, False])
def test_the_first_batch_is_the_largest(pack: bool) -> None:
    batches = make(pack=pack, max_length=100).epoch(0)
    sizes = [len(batch) * max(LENGTHS[list(row)].sum() for row in batch) for batch in batches]
    assert sizes[0] == max(sizes)


@pytest.mark.parametrize("size", [{"batch_size": 2}, {"batch_tokens": 150}])
def test_examples_of_one_number_of_windows_share_a_batch(size: dict[str, int]) -> None:
    def mixed(batches: Batches) -> int:
        counts = [{-(-int(LENGTHS[row[0]]) // 16) for row in batch} for batch in batches.epoch(0)]
        return sum(len(count) > 1 for count in counts)

    by_windows = make(pack=False, window=16, **size)
    assert shown(by_windows) == Counter(range(len(LENGTHS))) == shown(by_windows, 2)
    assert mixed(by_windows) <= 6  # what is left of each number, in the order of the numbers
    assert mixed(make(pack=False, **size)) > 6  # control
    assert by_windows.epoch(0) != by_windows.epoch(1)
    if "batch_size" in size:
        sizes = Counter(len(batch) for batch in by_windows.epoch(0))
        assert sizes == Counter(len(batch) for batch in make(pack=False, **size).epoch(0))
    else:
        assert max(by_windows.tokens(batch) for batch in by_windows.epoch(0)) <= 150 + int(LENGTHS.max())


def test_weights_decide_how_often_a_source_is_shown() -> None:
    sources = np.arange(len(LENGTHS)) % 2
    batches = make(sources=sources, weights=(2.5, 0.5))
    counts = shown(batches)
    first = [counts[i] for i in range(0, 500, 2)]
    second = [counts[i] for i in range(1, 500, 2)]
    assert sum(first) == 625
    assert set(first) == {2, 3}
    assert sum(second) == 125
    assert set(second) == {0, 1}
    assert shown(batches, 1) != counts  # another half in the next epoch


def test_batch_in_tokens_is_kept_to() -> None:
    batches = make(pack=False, batch_tokens=1000).epoch(0)
    tokens = [sum(int(LENGTHS[row[0]]) for row in batch) for batch in batches]
    assert np.median(tokens) == pytest.approx(1000, rel=0.1)
    assert max(tokens) < 1100
    packed = make(batch_tokens=1024).epoch(0)
    assert {len(batch) for batch in packed[:-1]} <= {8, len(packed[-1])}


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_workers_share_a_batch_without_loss(world: int) -> None:
    batch = make().epoch(0)[0]
    whole = dict(enumerate(micro_batches(batch, 3)))
    shares = [share(batch, 3, rank, world) for rank in range(world)]
    assert len({len(part) for part in shares}) == 1
    assert {number: rows for part in shares for number, rows in part if rows} == whole


def test_steps_and_progress() -> None:
    batches = make()
    per_epoch = [len(batches.epoch(epoch)) for epoch in range(3)]
    assert batches.steps(2) == sum(per_epoch[:2])
    assert batches.steps(2.5) == sum(per_epoch[:2]) + round(per_epoch[2] / 2)
    assert batches.progress(0) == 0
    assert batches.progress(per_epoch[0]) == 1
    assert batches.epoch_of(per_epoch[0]) == 1
    assert batches.supervised_tokens(batches.batch(5)) == batches.tokens(batches.batch(5)) - sum(
        map(len, batches.batch(5))
    )


PLACES = np.array([0, 1] * 150 + [0] * 50 + [0, 1, 2] * 50)
"""Pairs, single examples, and groups of three: 250 groups."""


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("size", [{"batch_size": 8}, {"batch_tokens": 1000}])
def test_groups_are_never_split(pack: bool, size: dict[str, int]) -> None:
    spec = BatchSpec(seed=1, max_length=128, pack=pack, **size)
    batches = Batches(LENGTHS, LENGTHS - 1, np.zeros(len(LENGTHS)), spec, PLACES)
    assert shown(batches) == Counter(range(len(LENGTHS)))
    for row in [row for batch in batches.epoch(0) for row in batch] + batches.rows():
        starts = [at for at, example in enumerate(row) if PLACES[example] == 0]
        assert starts[0] == 0
        for start, stop in zip(starts, [*starts[1:], len(row)], strict=True):
            group = range(row[start], row[start] + stop - start)
            assert row[start:stop] == tuple(group)
            assert list(PLACES[list(group)]) == list(range(len(group)))
            after = group.stop
            assert after == len(PLACES) or PLACES[after] == 0  # the whole group
        assert pack or len(starts) == 1
    assert sum(batches.groups(batch) for batch in batches.epoch(0)) == 250
    assert batches.groups(batches.rows()) == 250


def test_control_without_positions_groups_are_split() -> None:
    rows = [row for batch in make().epoch(0) for row in batch]
    assert any(row.index(example) + 1 == len(row) for row in rows for example in row if PLACES[example] == 0)


def test_a_group_over_the_capacity_has_a_row_of_its_own_and_the_plan_knows() -> None:
    lengths = np.array([100, 100, 20, 20, 30, 30])
    places = np.array([0, 1] * 3)
    spec = BatchSpec(seed=1, max_length=120, pack=True, batch_size=1)
    batches = Batches(lengths, lengths, np.zeros(6), spec, places)
    assert sorted(row for batch in batches.epoch(0) for row in batch) in (
        [(0, 1), (2, 3, 4, 5)],
        [(0, 1), (4, 5, 2, 3)],
    )
    assert batches.epoch(0)[0] == [(0, 1)]  # the largest is the first step
    assert batches.longest_row() == 200
    assert max(batches.length(row) for row in batches.epoch(0)[0]) == 200


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("weights", [(), (1.0, 0.4), (2.0, 1.5)])
@pytest.mark.parametrize("sizes", ["few", "one size", "many"])
def test_no_row_of_any_epoch_is_longer_than_the_longest_row(
    pack: bool, weights: tuple[float, ...], sizes: str
) -> None:
    lengths = {"few": np.array([7, 9, 11, 30]), "one size": np.full(40, 60), "many": LENGTHS}[sizes]
    sources = (np.arange(len(lengths)) % 2).astype(int)
    batches = make(lengths, sources, weights=weights, pack=pack)
    longest = batches.longest_row()
    rows = [row for epoch in range(8) for batch in batches.epoch(epoch) for row in batch]
    found = max(map(batches.length, rows))
    assert found <= longest <= 128
    drawn_in_part = pack and sizes == "few" and weights  # which of a source's groups an epoch draws is random
    assert drawn_in_part or found == longest
    expected = {("few", ()): 57, ("one size", ()): 120, ("many", ()): 128}
    assert not pack or longest == expected.get((sizes, weights), longest)
    assert max(map(batches.length, batches.rows())) <= batches.longest_row(evaluation=True)


def test_the_longest_joined_row_is_all_there_is() -> None:
    assert make(np.array([3, 4]), join=True, pack=False).longest_row() == 6  # the last token is a target only
    assert make(LENGTHS, join=True, pack=False).longest_row() == 128


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("weight", [0.01, 0.1, 0.3, 0.5])
def test_a_low_weight_draws_at_least_one_group(pack: bool, weight: float) -> None:
    """Round half to even: also 0.5 of one group would be none."""
    lengths = np.array([10, 10, 10, 20])
    sources = np.array([0, 0, 0, 1])
    batches = make(lengths, sources, weights=(1.0, weight), pack=pack)
    assert all(shown(batches, epoch) == Counter(range(4)) for epoch in range(3))
    alone = make(lengths, sources, weights=(weight, weight), pack=pack, batch_size=1)
    assert all(len(shown(alone, epoch)) >= 2 for epoch in range(3))
    assert alone.steps_to(1)[0] == alone.steps(0.01) == 1


def test_no_rows_are_refused() -> None:
    nothing = np.zeros(0, int)
    for spec in ({"pack": True}, {"pack": False}, {"pack": False, "batch_tokens": 100}):
        assert make(nothing, **spec).epoch(0) == []
        with pytest.raises(DataError, match="no training example"):
            make(nothing, **spec).steps_to(10)
    assert make(np.array([1]), join=True, pack=False).epoch(0) == []  # no next token to predict


def test_weights_draw_whole_groups() -> None:
    sources = (np.arange(len(LENGTHS)) >= 300).astype(int)
    spec = BatchSpec(seed=1, max_length=128, pack=True, batch_size=8, weights=(0.5, 2.0))
    counts = shown(Batches(LENGTHS, LENGTHS, sources, spec, PLACES))
    assert sum(counts[at] for at in range(300)) == 150
    assert all(counts[at] == counts[at + 1] for at in range(0, 300, 2))
    assert all(counts[at] == 2 for at in range(300, 500))
