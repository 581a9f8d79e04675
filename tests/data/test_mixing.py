"""Weights of sources as shares of the tokens: measured in the batches, for rows of any length."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from tailor.data import mixing
from tailor.data.batches import Batches
from tailor.data.rows import StreamSlice
from tailor.errors import DataError
from tailor.plan.batches import BatchSpec

DRAW = np.random.default_rng(7)
SHORT, LONG = 400, 40
LENGTHS = np.concatenate(
    [DRAW.integers(5, 60, SHORT), DRAW.integers(200, 1000, LONG), DRAW.integers(5, 1000, 60)]
)
SOURCES = np.repeat([0, 1, 2], [SHORT, LONG, 60])
"""Many short rows, a few long ones that have about half of the tokens, and rows of all lengths."""
MODES: dict[str, dict[str, Any]] = {
    "packed": {"pack": True},
    "alone": {"pack": False},
    "joined": {"pack": False, "join": True},
    "windows": {"pack": False, "window": 64},
    "packed, short to long": {"pack": True, "order": "short_to_long"},
    "batches of tokens": {"pack": True, "batch_size": None, "batch_tokens": 4096},
}
WEIGHTS = ((1.0, 1.0, 1.0), (3.0, 1.0, 1.0), (0.1, 5.0, 0.4), (1.0, 1.0, 50.0), (1e-3, 1.0, 1.0))


def make(weights: tuple[float, ...], weight_by: str = "tokens", **spec: Any) -> Batches:
    values = {"seed": 3, "max_length": 1024, "pack": True, "batch_size": 8, **spec}
    return Batches(LENGTHS, LENGTHS - 1, SOURCES, BatchSpec(weights=weights, weight_by=weight_by, **values))


def measured(batches: Batches, epoch: int) -> np.ndarray:
    """[3]: tokens of each source, counted row by row."""
    found = np.zeros(3, int)
    for row in itertools.chain.from_iterable(batches.epoch(epoch)):
        pieces = (
            row.stream.pieces(row.start, row.stop)
            if isinstance(row, StreamSlice)
            else [(one, 0, LENGTHS[one]) for one in row]
        )
        for example, start, stop in pieces:
            found[SOURCES[example]] += stop - start
    return found


def error(found: np.ndarray, weights: tuple[float, ...]) -> np.ndarray:
    """[3]: tokens beside the share of all tokens of one pass, in rows of the source's greatest length."""
    wanted = LENGTHS.sum() * np.array(weights) / sum(weights)
    longest = np.array([LENGTHS[source == SOURCES].max() for source in range(3)])
    return np.asarray(np.abs(found - wanted) / longest)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_each_source_has_its_share_of_the_tokens_within_one_row(
    mode: str, weights: tuple[float, ...]
) -> None:
    batches = make(weights, **MODES[mode])
    for epoch in range(2):
        assert error(measured(batches, epoch), weights).max() <= 1.0
    off = batches.source_tokens(3) - measured(batches, 0)  # a stream's last token is only a target
    assert off.sum() == (1 if mode == "joined" else 0)
    assert abs(off).max() <= 1


def test_control_weights_of_rows_are_far_from_these_shares() -> None:
    assert error(measured(make((3.0, 1.0, 1.0), weight_by="rows"), 0), (3.0, 1.0, 1.0)).max() > 3


def test_no_row_is_shown_more_than_once_oftener_than_another_of_its_source() -> None:
    batches = make((4.0, 1.0, 0.05))
    for epoch in range(3):
        shown = Counter(one for batch in batches.epoch(epoch) for row in batch for one in row)
        for source in range(3):
            counts = [shown[int(one)] for one in np.flatnonzero(source == SOURCES)]
            assert max(counts) - min(counts) <= 1
    assert batches.epoch(0) != batches.epoch(1)


def test_every_worker_and_every_call_draws_the_same() -> None:
    forward, jumping = make((3.0, 1.0, 0.5)), make((3.0, 1.0, 0.5))
    steps = [forward.batch(step) for step in range(60)]
    assert all(jumping.batch(step) == steps[step] for step in (59, 2, 31, 0))


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_longest_row_is_known(pack: bool, weights: tuple[float, ...]) -> None:
    batches = make(weights, pack=pack)
    rows = [row for epoch in range(3) for batch in batches.epoch(epoch) for row in batch]
    assert max(map(batches.length, rows)) <= batches.longest_row() <= 1024


def test_a_source_without_rows_takes_no_share() -> None:
    """All its rows may have been left out in preparation."""
    spec = BatchSpec(
        seed=1, max_length=64, pack=True, batch_size=2, weights=(1.0, 8.0, 1.0), weight_by="tokens"
    )
    lengths, sources = np.full(20, 10), np.repeat([0, 2], 10)
    assert mixing.passes(sources, lengths, spec) == [1.0, 0.0, 1.0]
    assert Batches(lengths, lengths, sources, spec).source_tokens(3) == (100, 0, 100)
    nothing = np.zeros(0, int)
    assert Batches(nothing, nothing, nothing, spec).epoch(0) == []


def test_groups_are_drawn_whole() -> None:
    lengths, sources = np.full(60, 10), np.repeat([0, 1], 30)
    spec = BatchSpec(seed=1, max_length=64, pack=True, batch_size=2, weights=(3.0, 1.0), weight_by="tokens")
    batches = Batches(lengths, lengths, sources, spec, np.tile([0, 1, 2], 20))
    shown = Counter(one for batch in batches.epoch(0) for row in batch for one in row)
    assert all(shown[one] == shown[one + 1] == shown[one + 2] for one in range(0, 60, 3))
    assert batches.source_tokens(2) == (450, 150)


@pytest.mark.parametrize("unit", [5e-324, 1e-310, 1.0, 4e307])
def test_shares_are_relative_whatever_the_size_of_the_weights(unit: float) -> None:
    spec = BatchSpec(seed=1, max_length=64, pack=True, weights=(3 * unit, unit, 4 * unit), weight_by="tokens")
    sources = np.repeat([0, 1, 2], 8)
    assert mixing.passes(sources, np.full(24, 10), spec) == [1.125, 0.375, 1.5]


def test_the_one_group_of_a_tiny_weight_counts_in_the_longest_row() -> None:
    spec = BatchSpec(seed=1, max_length=64, pack=True, batch_size=2, weights=(1e-12, 1.0))
    batches = Batches(np.array([7, 20]), np.array([6, 19]), np.array([0, 1]), spec)
    assert [batches.length(row) for row in batches.epoch(0)[0]] == [27]
    assert batches.longest_row() == 27


@pytest.mark.parametrize("weight", [1e8, 1e30, 1.7e308])
def test_a_weight_whose_epoch_does_not_fit_into_memory_is_an_error(weight: float) -> None:
    spec = BatchSpec(seed=1, max_length=64, pack=True, batch_size=2, weights=(1.0, weight))
    with pytest.raises(
        DataError, match=r"data\.train\[1\]\.weight: an epoch would show its 2 rows"
    ) as caught:
        Batches(np.full(3, 10), np.full(3, 9), np.array([0, 1, 1]), spec).epoch(0)
    assert "train.epochs" in (caught.value.hint or "")
