"""Joined documents: no token is lost or learned twice, and the rows follow from lengths, seed and epoch alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailor.data.batches import Batches
from tailor.data.rows import Row, StreamSlice, join, share
from tailor.models.collator import Collator
from tailor.plan.batches import BatchSpec
from tests.helpers.stores import make_store

LENGTHS = np.random.default_rng(0).integers(2, 90, size=300)
LENGTHS[7] = 1000  # many rows long
ROW = 64
Token = tuple[int, int]


def make(lengths: np.ndarray = LENGTHS, sources: np.ndarray | None = None, **spec: Any) -> Batches:
    values = {"seed": 1, "max_length": ROW, "pack": False, "join": True, "batch_size": 8, **spec}
    if "batch_tokens" in spec:
        del values["batch_size"]
    sources = np.zeros(len(lengths), dtype=int) if sources is None else sources
    return Batches(lengths, lengths - 1, sources, BatchSpec(**values))


def tokens(row: Row) -> list[Token]:
    """(example, position) of a row's tokens and of the one that it only predicts."""
    assert isinstance(row, StreamSlice)
    return [(example, at) for example, start, stop in row.pieces for at in range(start, stop)]


def counted(rows: list[Row]) -> tuple[Counter[Token], Counter[Token]]:
    """How often each token is read, and how often predicted."""
    read, predicted = Counter[Token](), Counter[Token]()
    for row in rows:
        read.update(tokens(row)[:-1])
        predicted.update(tokens(row)[1:])
    return read, predicted


def check(rows: list[Row], lengths: np.ndarray) -> None:
    """Every token is read and predicted once, but for the stream's last and first."""
    every = {(example, at) for example, length in enumerate(lengths) for at in range(length)}
    for counts in counted(rows):
        assert set(counts.values()) == {1}
        assert len(counts) == len(every) - 1
        (missing,) = every - counts.keys()
        assert missing[1] in (0, lengths[missing[0]] - 1)


@pytest.mark.parametrize("size", [{"batch_size": 8}, {"batch_tokens": 512}])
@pytest.mark.parametrize("epoch", [0, 3])
def test_no_token_is_lost_or_learned_twice(size: dict[str, int], epoch: int) -> None:
    rows = [row for batch in make(**size).epoch(epoch) for row in batch]
    check(rows, LENGTHS)
    lengths = Counter(make().length(row) for row in rows)
    rest = (LENGTHS.sum() - 1) % ROW
    assert lengths == {ROW: (LENGTHS.sum() - 1) // ROW, rest: 1}, "all rows are full, and the rest is kept"


@pytest.mark.parametrize("wrong", ["lost", "twice"])
def test_control_rows_without_their_last_prediction_or_with_an_overlap_fail(wrong: str) -> None:
    rows = join(np.arange(len(LENGTHS)), LENGTHS, ROW)
    check(list(rows), LENGTHS)
    change = {"lost": (0, -1), "twice": (-1, 0)}[wrong]
    broken: list[Row] = [
        StreamSlice(row.stream, max(row.start + change[0], 0), row.stop + change[1]) for row in rows
    ]
    with pytest.raises(AssertionError):
        check(broken, LENGTHS)


def pieces(batches: list[list[Row]]) -> list[list[list[tuple[int, int, int]]]]:
    return [[row.pieces for row in batch if isinstance(row, StreamSlice)] for batch in batches]


def test_the_rows_follow_from_seed_and_epoch() -> None:
    assert pieces(make().epoch(1)) == pieces(make().epoch(1))
    assert pieces(make().epoch(1)) != pieces(make().epoch(0))
    assert pieces(make().epoch(1)) != pieces(make(seed=2).epoch(1))
    jumping = make()
    assert pieces([jumping.batch(9)]) == pieces([make().epoch(0)[9]])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_workers_share_the_same_rows(world: int) -> None:
    batch = make().epoch(0)[3]
    shared = [row for rank in range(world) for _, rows in share(batch, 2, rank, world) for row in rows]
    assert sorted(map(id, shared)) == sorted(map(id, batch))


def test_documents_are_shuffled_before_they_are_joined() -> None:
    order = [example for row in make().epoch(0)[0] for example, _, _ in row.pieces]  # type: ignore[union-attr]
    assert order != sorted(order)
    follows = {
        b
        for row in make().epoch(0)[0]
        for a, b in zip(tokens(row), tokens(row)[1:], strict=False)
        if a[0] != b[0]
    }
    assert follows
    assert {at for _, at in follows} == {0}, "a document begins where another ends"


def test_weights_join_a_source_as_often_as_they_say() -> None:
    sources = np.arange(len(LENGTHS)) % 2
    rows = [row for batch in make(sources=sources, weights=(2.0, 1.0)).epoch(0) for row in batch]
    read, _ = counted(rows)
    assert sum(read.values()) == 2 * LENGTHS[::2].sum() + LENGTHS[1::2].sum() - 1


@pytest.mark.parametrize("layout", ["stream", "rows"])
def test_the_model_reads_the_joined_tokens(tmp_path: Path, layout: Any) -> None:
    split = make_store(tmp_path, [5, 9, 3, 30]).split("train")
    joined = np.concatenate([split.example(i).input_ids for i in range(4)])
    rows = join(np.arange(4), split.lengths, 16)
    batch = Collator(split, layout)(rows)
    targets = batch.targets.tolist()
    inputs = batch.input_ids.flatten()[batch.predicting].tolist()
    assert inputs == joined[:-1].tolist()
    assert targets == joined[1:].tolist()
    assert batch.position_ids.flatten()[batch.predicting].tolist() == [*range(16), *range(16), *range(14)]
    assert batch.token_document.flatten()[batch.predicting].tolist() == [0] * 16 + [1] * 16 + [2] * 14


@pytest.mark.parametrize("kind", [{"join": True}, {"join": False, "pack": True}, {"join": False}])
def test_a_budget_in_tokens_ends_with_the_step_that_reaches_it(kind: dict[str, Any]) -> None:
    batches = make(**{"max_length": 1000, **kind})
    sizes = [batches.tokens(batches.batch(step)) for step in range(12)]
    for step in (0, 4, 11):  # over the first epoch's end too
        total = sum(sizes[: step + 1])
        assert batches.steps_to(total) == (step + 1, total)
        assert batches.steps_to(total - sizes[step] + 1) == (step + 1, total)
    assert batches.steps_to(sum(sizes[:3]) + 1)[0] == 4
