"""Rows of a part share no text, every row is in one part, and the parts are as few as they can be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailor.data.distinct import distinct_parts, text_hashes
from tailor.data.facts import of_split
from tailor.data.grit_batches import GritBatch, GritBatches, text_facts
from tailor.data.split import Split
from tailor.plan.batches import BatchSpec
from tailor.spec.methods.base import StreamSizes
from tests.helpers.embedding_stores import make_grit_store
from tests.helpers.operations import grows_linearly


def shared(rows: list[set[Any]]) -> int:
    """Texts that several rows have."""
    return sum(count > 1 for count in Counter(text for row in rows for text in row).values())


@pytest.mark.parametrize("seed", range(30))
def test_parts_of_random_rows(seed: int) -> None:
    generator = np.random.default_rng(seed)
    n, k, size = (int(generator.integers(*bounds)) for bounds in ((1, 90), (1, 5), (1, 20)))
    kinds = int(generator.integers(k, 4 * n + k))
    draw = generator.integers(0, kinds, (n, k)) if seed % 2 else generator.zipf(1.5, (n, k))
    texts = draw.astype(np.uint64)
    parts = distinct_parts(texts, size)
    assert Counter(np.concatenate(parts).tolist()) == Counter(range(n))
    for part in parts:
        assert 0 < len(part) <= size
        assert shared([set(texts[row].tolist()) for row in part]) == 0
    most = max(Counter(text for row in texts for text in set(row.tolist())).values())
    fewest = max(-(-n // size), most)
    assert len(parts) >= fewest
    if k == 1:  # rows with one text each always fit
        assert len(parts) == fewest
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_rows_without_shared_texts_stay_in_order() -> None:
    parts = distinct_parts(np.arange(20, dtype=np.uint64).reshape(10, 2), 4)
    assert [part.tolist() for part in parts] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert distinct_parts(np.zeros((0, 2), np.uint64), 4) == []
    assert [len(part) for part in distinct_parts(np.zeros((5, 3), np.uint64), 4)] == [1] * 5


def test_a_text_of_most_rows_takes_no_quadratic_time() -> None:
    def divide(rows: int) -> None:
        texts = np.arange(2 * rows, dtype=np.uint64).reshape(-1, 2)
        texts[::2, 1] = 10**6
        assert len(distinct_parts(texts, 8)) == rows // 2

    assert grows_linearly(divide, 500)


def test_hashes_are_those_of_the_tokens_in_their_order() -> None:
    ids = np.array([1, 2, 3, 1, 2, 3, 2, 1, 3, 1, 2, 0], np.int32)
    bounds = [(0, 3), (3, 6), (6, 9), (9, 11), (9, 12), (4, 4), (0, 0)]
    hashes = text_hashes(ids, *map(np.array, zip(*bounds, strict=True))).tolist()
    assert hashes[0] == hashes[1]
    assert hashes[5] == hashes[6]
    assert len(set(hashes)) == 5


MEMBERS = 6  # a query, two positives, three negatives


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Rows of two sources, whose texts come from few."""
    generator = np.random.default_rng(0)
    texts = {i: [9, int(generator.integers(20, 90))] for i in range(40 * MEMBERS)}
    folder = tmp_path_factory.mktemp("tokens")
    return make_grit_store(
        folder, queries=40, examples=10, sources=[0] * 25 + [1] * 15, texts=texts, evaluation=5
    ).split("train")


def make(split: Split, *, distinct: bool, **spec: Any) -> GritBatches:
    streams = StreamSizes(5, 3, 3, distinct)
    batches = of_split(split, BatchSpec(seed=1, max_length=64, pack=False, streams=streams, **spec))
    assert isinstance(batches, GritBatches)
    return batches


def rows_of(split: Split, batch: Any) -> dict[int, set[bytes]]:
    """Query -> the texts of its row, by their tokens."""
    assert isinstance(batch, GritBatch)
    found = batch.text_examples()
    texts = [bytes(split.example(int(i)).input_ids[3:].tobytes()) for i in found]
    passages = [texts[batch.queries + at * batch.group :][: batch.group] for at in range(batch.queries)]
    return {int(found[at]): {texts[at], *passages[at]} for at in range(batch.queries)}


@pytest.mark.parametrize("weights", [(), (2.0, 0.5, 1.0)])
def test_batches_without_duplicates(split: Split, weights: tuple[float, ...]) -> None:
    batches, plain = make(split, distinct=True, weights=weights), make(split, distinct=False, weights=weights)
    counts = set()
    for epoch in range(4):
        parts = [rows_of(split, batch) for batch in batches.epoch(epoch)]
        assert [shared(list(part.values())) for part in parts] == [0] * len(parts)
        shown = Counter(query for part in parts for query in part)
        expected = Counter(int(q) for b in plain.epoch(epoch) for q in b.text_examples()[: b.queries])
        assert shown.total() == expected.total()
        if not weights:
            assert shown == expected == Counter(range(0, 40 * MEMBERS, MEMBERS))
        for batch in batches.epoch(epoch):
            assert len({int(split.source[query]) for query in rows_of(split, batch)}) == 1
        counts.add(len(parts))
    assert any(shared(list(rows_of(split, batch).values())) for batch in plain.epoch(0)), "the control"
    assert len(counts) > 1, "epochs have different numbers of batches, on which the examples must not depend"
    facts = text_facts(batches, batches)["texts_per_batch"]
    assert facts >= max(batch.texts for epoch in range(4) for batch in batches.epoch(epoch))


def test_examples_go_on_over_epochs_and_steps_are_pure(split: Split) -> None:
    forward, jumping = make(split, distinct=True), make(split, distinct=True)
    batches = [forward.batch(step) for step in range(60)]
    shown = [row[0] for batch in batches for row in batch[batch.texts :]]
    assert forward.epoch_of(59) > 2
    counts = Counter(shown)
    assert max(counts.values()) - min(counts.values()) == 0, "180 draws of 10 examples"
    for step in (59, 3, 40, 0):
        assert list(jumping.batch(step)) == list(batches[step])
        assert np.array_equal(jumping.batch(step).text_index, batches[step].text_index)
    last = make(split, distinct=True)
    assert [list(batch) for batch in last.epoch(2)] == [list(batch) for batch in forward.epoch(2)]


def test_evaluation_is_the_same(tmp_path: Path, split: Split) -> None:
    pair = [make(split, distinct=distinct).evaluation() for distinct in (True, False)]
    assert [list(batch) for batch in pair[0]] == [list(batch) for batch in pair[1]]
