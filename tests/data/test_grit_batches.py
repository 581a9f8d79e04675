"""GRIT batches: queries with passages and examples to generate, a pure function of seed and step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailor.data.batches import Batches
from tailor.data.facts import of_split, smaller_than_batch
from tailor.data.grit_batches import GritBatch, GritBatches, text_facts
from tailor.data.split import Split
from tailor.errors import DataError
from tailor.plan.batches import BatchSpec
from tailor.spec.methods.base import StreamSizes
from tests.helpers.embedding_stores import make_grit_store

SOURCES = [0] * 11 + [1] * 6
MEMBERS = 6  # a query, two answers, three others


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("tokens")
    return make_grit_store(folder, queries=17, examples=10, sources=SOURCES).split("train")


def make(split: Split, queries: int = 4, examples: int = 3, group: int = 3, **spec: Any) -> GritBatches:
    streams = StreamSizes(queries, examples, group)
    batches = of_split(split, BatchSpec(seed=1, max_length=64, pack=False, streams=streams, **spec))
    assert isinstance(batches, GritBatches)
    return batches


def texts(batch: Any) -> np.ndarray:
    """int[queries, 1 + group] examples."""
    assert isinstance(batch, GritBatch)
    found = batch.text_examples()
    return np.concatenate(
        [found[: batch.queries, None], found[batch.queries :].reshape(batch.queries, -1)], 1
    )


def generated(batch: Any) -> list[int]:
    return [row[0] for row in batch[batch.texts :]]


def test_an_epoch_shows_every_query_once(split: Split) -> None:
    for epoch in (0, 3):
        shown = Counter(int(row[0]) for batch in make(split).epoch(epoch) for row in texts(batch))
        assert shown == Counter(range(0, 17 * MEMBERS, MEMBERS))


def test_a_batch_has_queries_of_one_source_and_batches_have_similar_sizes(split: Split) -> None:
    batches = make(split).epoch(0)
    assert sorted(batch.queries for batch in batches) == [3, 3, 3, 4, 4]
    for batch in batches:
        assert len({int(split.source[row[0]]) for row in texts(batch)}) == 1
    assert len({int(split.source[texts(batch)[0, 0]]) for batch in batches}) == 2


@pytest.mark.parametrize("weights", [(1.0, 1.0, 0.01), (0.01, 0.05, 0.04)])
def test_a_low_weight_draws_at_least_one_query_and_one_example(
    split: Split, weights: tuple[float, ...]
) -> None:
    batches = make(split, weights=weights)
    for epoch in (0, 1):
        batch = batches.epoch(epoch)
        assert {int(split.source[texts(part)[0, 0]]) for part in batch} == {0, 1}
        assert all(len(generated(part)) == 3 for part in batch)
    assert batches.steps_to(1)[0] == 1


def test_the_plan_counts_the_texts_that_there_are(split: Split) -> None:
    few = make(split, queries=1000)
    assert text_facts(few, few)["texts_per_batch"] == 11 * 4  # the larger source, not 1,000 queries
    assert text_facts(make(split), few)["texts_per_batch"] == 11 * 4  # of the evaluation
    assert text_facts(make(split), make(split))["texts_per_batch"] == 4 * 4


def test_batch_sizes_that_no_batch_reaches(split: Split) -> None:
    def short(batches: Any) -> dict[str, int]:
        return smaller_than_batch(batches, batches.epoch(0), batches.spec)

    assert short(make(split)) == {}
    assert short(make(split, queries=7)) == {}, "11 queries make batches of 6 and 5, which is no lack of data"
    assert short(make(split, queries=12, examples=11)) == {
        "method.embedding_batch_size": 11,
        "method.generative_batch_size": 10,
    }
    rows = np.full(5, 8)
    for size, expected in ((5, {}), (6, {"train.batch_size": 5}), (3, {})):
        spec = BatchSpec(seed=1, max_length=64, pack=False, batch_size=size)
        assert short(Batches(rows, rows, np.zeros(5, int), spec)) == expected


def test_a_query_has_its_own_positive_and_negatives(split: Split) -> None:
    drawn: dict[int, set[int]] = {}
    for epoch in range(6):
        for batch in make(split).epoch(epoch):
            for query, answer, *others in texts(batch).tolist():
                assert answer in (query + 1, query + 2)
                assert len(set(others)) == 2
                assert set(others) <= {query + 3, query + 4, query + 5}
                drawn.setdefault(query, set()).add(answer)
    assert sum(len(answers) == 2 for answers in drawn.values()) > 10, "epochs draw anew"


def test_too_few_negatives_are_repeated(split: Split) -> None:
    for row in texts(make(split, group=6).epoch(0)[0]).tolist():
        assert len(row) == 7
        assert set(row[2:]) == {row[0] + 3, row[0] + 4, row[0] + 5}


def test_a_row_without_negatives_gets_passages_of_other_rows_of_its_source(tmp_path: Path) -> None:
    """A row is a query and two answers. The third source has one row, so its negatives come from any source."""
    sources = [0] * 11 + [1] * 6 + [2]
    split = make_grit_store(tmp_path, queries=18, examples=3, others=0, sources=sources).split("train")
    batches = make(split)
    drawn: dict[int, set[int]] = {}
    for epoch in range(6):
        for query, _, *others in (row for batch in batches.epoch(epoch) for row in texts(batch).tolist()):
            assert len(set(others)) == 2
            assert all(other // 3 != query // 3 and other % 3 for other in others), "passages of other rows"
            if split.source[query] < 2:
                assert {int(split.source[other]) for other in others} == {int(split.source[query])}
            drawn.setdefault(query, set()).update(others)
    assert min(len(others) for others in drawn.values()) > 2, "epochs draw anew"
    assert set().union(*(drawn[query] for query in range(0, 33, 3))) == {at for at in range(33) if at % 3}
    again = make(split)
    assert np.array_equal(texts(again.batch(7)), texts(batches.batch(7))), "a pure function of seed and step"
    first = [row for batch in batches.evaluation() if batch.queries for row in texts(batch).tolist()]
    assert first[:2] == [[0, 1, 4, 5], [3, 4, 7, 8]]
    assert first[10] == [30, 31, 1, 2], "the last row of a source continues with its first"
    assert texts(make(split, group=1).batch(0)).shape[1] == 2, "none are needed"
    alone = make_grit_store(tmp_path / "alone", queries=1, others=0).split("train")
    with pytest.raises(
        DataError, match=r"a query has no negative passage, and no other row.*method\.group_size: 1"
    ):
        make(alone, examples=0).batch(0)


def test_the_examples_repeat_independently_of_the_texts(split: Split) -> None:
    batches = make(split)
    per_epoch = len(batches.epoch(0))
    seen: Counter[int] = Counter(dict.fromkeys(range(17 * MEMBERS, 17 * MEMBERS + 10), 0))
    for step in range(10):
        seen.update(generated(batches.batch(step)))
        assert max(seen.values()) - min(seen.values()) <= 1
    assert seen.total() == 30
    rounds = [list(batches._round(number)) for number in (0, 1)]
    assert rounds[0] != rounds[1], "each is shuffled anew"
    assert per_epoch * 3 % 10, "the rounds don't end with the epochs"


def test_a_step_is_the_same_in_any_order_of_calls(split: Split) -> None:
    forward, jumping = make(split), make(split)
    steps = [(texts(batch), generated(batch)) for batch in map(forward.batch, range(17))]
    for step in (16, 2, 9, 0):
        rows, examples = texts(jumping.batch(step)), generated(jumping.batch(step))
        assert np.array_equal(rows, steps[step][0])
        assert examples == steps[step][1]
    other = of_split(split, BatchSpec(seed=2, max_length=64, pack=False, streams=StreamSizes(4, 3, 3)))
    assert not np.array_equal(texts(other.batch(2)), steps[2][0])


def test_the_first_step_takes_the_longest(split: Split) -> None:
    batches = make(split)
    longest = max(range(len(split)), key=lambda i: int(split.lengths[i]) if split.source[i] < 2 else 0)
    first = batches.batch(0)
    queries = texts(first)[:, 0]
    assert max(int(split.lengths[q : q + MEMBERS].sum()) for q in queries) == max(
        int(split.lengths[q : q + MEMBERS].sum()) for q in range(0, 17 * MEMBERS, MEMBERS)
    )
    assert split.lengths[generated(first)].max() == batches.longest_example()
    assert batches.longest_text() == split.lengths[longest]


@pytest.mark.parametrize("seed", range(4))
def test_the_first_step_takes_the_longest_example_where_nothing_is_embedded(
    tmp_path: Path, seed: int
) -> None:
    alone = make_grit_store(tmp_path, queries=0, examples=30).split("train")
    streams = StreamSizes(0, 3, 1)
    batches = of_split(alone, BatchSpec(seed=seed, max_length=64, pack=False, streams=streams))
    longest = [max(alone.lengths[generated(batch)]) for batch in batches.epoch(0)]
    assert longest[0] == max(longest) == max(alone.lengths)
    later = [max(alone.lengths[generated(batch)]) for batch in batches.epoch(1)]
    assert sorted(later) != later[::-1], (
        "the control: only the first epoch begins with it, and the rest is drawn"
    )


def test_texts_are_sorted_by_length_and_text_index_restores_the_order(split: Split) -> None:
    batch = make(split).batch(3)
    lengths = [int(split.lengths[row[0]]) for row in batch[: batch.texts]]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(batch.text_index) == list(range(batch.texts))
    assert batch.texts == batch.queries * 4


def test_a_single_stream(split: Split) -> None:
    embedding, generating = make(split, examples=0), make(split, queries=0)
    assert all(not generated(batch) for batch in embedding.epoch(0))
    shown = Counter(example for batch in generating.epoch(0) for example in generated(batch))
    assert shown == Counter(range(17 * MEMBERS, 17 * MEMBERS + 10))
    assert generating.supervised_tokens(generating.batch(0)) == sum(
        int(split.supervised[i]) for i in generated(generating.batch(0))
    )
    assert embedding.supervised_tokens(embedding.batch(0)) == 0


def test_evaluation_shows_everything_once_in_order(split: Split) -> None:
    found = make(split).evaluation()
    queries = [int(row[0]) for batch in found if batch.queries for row in texts(batch)]
    assert queries == list(range(0, 17 * MEMBERS, MEMBERS))
    parts = [sorted(generated(batch)) for batch in found]
    assert [example for part in parts for example in part] == list(range(17 * MEMBERS, 17 * MEMBERS + 10))
    assert all(row[1] == row[0] + 1 for batch in found if batch.queries for row in texts(batch).tolist())


def test_weights_show_sources_more_often(split: Split) -> None:
    batches = make(split, weights=(2.0, 0.5, 1.0))
    shown = Counter(int(split.source[row[0]]) for batch in batches.epoch(0) for row in texts(batch))
    assert shown == {0: 22, 1: 3}
    assert len(batches.epoch(0)) == len(batches.epoch(1))


def test_excluded_pairs(tmp_path: Path) -> None:
    """Query 1 is query 0 again; query 2's other passage is an answer of query 3, by its row."""
    same = {0: [9, 9], MEMBERS: [9, 9], 2 * MEMBERS + 3: [8, 8, 8], 3 * MEMBERS + 2: [8, 8, 8]}
    split = make_grit_store(tmp_path, queries=4, texts=same).split("train")
    rows = np.array([[q * MEMBERS, q * MEMBERS + 1, q * MEMBERS + 3] for q in range(4)])
    batch = GritBatch(split, rows, [])
    assert batch.excluded.tolist() == [[0, 2], [1, 0], [3, 5]]
    other = make_grit_store(tmp_path / "other", queries=4).split("train")
    assert GritBatch(other, rows, []).excluded.tolist() == [], "the control: nothing is equal"


@pytest.mark.parametrize(("mode", "queries", "examples"), [("embedding", 4, 0), ("generative", 0, 3)])
def test_rows_that_the_mode_does_not_use_are_rejected(
    mode: str, queries: int, examples: int, split: Split
) -> None:
    both = make(split, queries, examples)
    with pytest.raises(DataError, match=f"mode: {mode} cannot use rows that are"):
        both.check(both)


def test_missing_rows_are_reported(tmp_path: Path) -> None:
    texts = make(make_grit_store(tmp_path, queries=3).split("train"))
    with pytest.raises(
        DataError, match="needs training rows that are conversations or texts to generate, but there are none"
    ):
        texts.check(texts)
