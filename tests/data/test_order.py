"""`train.order: short_to_long`: a curriculum over lengths."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from tailor.data.batches import Batches
from tailor.plan.batches import BatchSpec

LENGTHS = np.exp(np.random.default_rng(0).uniform(np.log(5), np.log(1000), 6000)).astype(int)
"""More groups than are packed together."""
MODES: dict[str, dict[str, Any]] = {
    "packed": {"pack": True},
    "alone": {"pack": False},
    "windows": {"pack": False, "window": 64},
    "batches of tokens": {"pack": False, "batch_size": None, "batch_tokens": 9000},
}


def make(order: str = "short_to_long", **spec: Any) -> Batches:
    values = {"seed": 3, "max_length": 1024, "pack": True, "batch_size": 8, **spec}
    return Batches(LENGTHS, LENGTHS - 1, np.zeros(len(LENGTHS), int), BatchSpec(order=order, **values))


def longest(batches: Batches, epoch: int) -> list[int]:
    """The longest document of each batch."""
    return [max(int(LENGTHS[one]) for row in batch for one in row) for batch in batches.epoch(epoch)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("epoch", [0, 1])
def test_no_batch_is_shorter_than_the_one_before(mode: str, epoch: int) -> None:
    found = longest(make(**MODES[mode]), epoch)
    assert found == sorted(found)
    shuffled = longest(make("shuffled", **MODES[mode]), epoch)
    assert np.corrcoef(shuffled, np.arange(len(shuffled)))[0, 1] < 0.2, "control"


@pytest.mark.parametrize("mode", MODES)
def test_every_row_is_shown_once_and_rows_fit(mode: str) -> None:
    batches = make(**MODES[mode])
    rows = [row for batch in batches.epoch(1) for row in batch]
    assert Counter(one for row in rows for one in row) == Counter(range(len(LENGTHS)))
    assert max(map(batches.length, rows)) <= batches.longest_row() <= 1024


def test_packed_rows_have_documents_of_similar_length() -> None:
    def spread(batches: Batches) -> float:
        rows = [row for batch in batches.epoch(0) for row in batch]
        return float(np.median([max(LENGTHS[list(row)]) / min(LENGTHS[list(row)]) for row in rows]))

    assert spread(make()) < 1.2 < 2 < spread(make("shuffled"))


def test_windows_of_a_batch_stay_equal() -> None:
    """With beacons, a batch has documents of the same number of windows, except for the rest of each number."""
    batches = make(**MODES["windows"]).epoch(0)
    mixed = sum(len({-(-LENGTHS[row[0]] // 64) for row in batch}) > 1 for batch in batches)
    assert mixed <= -(-max(LENGTHS) // 64)
    assert mixed < len(batches) / 10


def test_equal_lengths_are_in_another_order_in_each_epoch_and_for_each_seed() -> None:
    lengths = np.full(100, 9)

    def order(seed: int, epoch: int) -> list[int]:
        spec = BatchSpec(seed=seed, max_length=9, pack=False, batch_size=1, order="short_to_long")
        batches = Batches(lengths, lengths, np.zeros(100, int), spec).epoch(epoch)
        return [one for batch in batches for row in batch for one in row if isinstance(row, tuple)]

    assert order(1, 0) == order(1, 0) != order(1, 1) != order(2, 1)


def test_a_step_is_the_same_in_any_order_of_calls() -> None:
    forward, jumping = make(), make()
    steps = [forward.batch(step) for step in range(60)]
    assert all(jumping.batch(step) == steps[step] for step in (59, 3, 21, 0))
