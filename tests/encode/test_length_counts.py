"""Counts of lengths measure what the lengths themselves do, and thousands of tasks have as many as one."""

from __future__ import annotations

import numpy as np
import pytest

from tailor.encode.length_counts import NO_LENGTHS, LengthCounts
from tailor.encode.report import Lengths, TaskReport

DRAW = np.random.default_rng(3)


@pytest.mark.parametrize("examples", [1, 2, 3, 10, 101, 997])
def test_measures_are_those_of_the_lengths(examples: int) -> None:
    lengths = DRAW.integers(1, 400, examples).astype(np.int32)
    parts = [LengthCounts.of(part) for part in np.array_split(lengths, 4)]
    found = LengthCounts.sum(parts).measures(7)
    assert (found["examples"], found["tokens"], found["supervised_tokens"]) == (examples, lengths.sum(), 7)
    assert found["lengths"] == {
        "min": lengths.min(),
        "mean": round(float(lengths.mean()), 1),
        **{f"p{one}": np.percentile(lengths, one, method="higher") for one in (50, 90, 95, 99)},
        "max": lengths.max(),
    }
    shown = LengthCounts.of(lengths).histogram()
    assert shown["counts"] == np.histogram(lengths, shown["edges"])[0].tolist()
    assert sum(shown["counts"]) == examples
    if examples > 3:  # control: lengths that differ have other measures
        assert LengthCounts.of(lengths + 1).measures(7) != found


def test_without_examples_there_are_no_measures() -> None:
    assert NO_LENGTHS.measures(0)["lengths"] == {}
    assert NO_LENGTHS.histogram() == {"counts": [], "edges": []}
    assert LengthCounts.sum(()).measures(0)["examples"] == 0


def test_the_lengths_of_thousands_of_tasks_take_as_much_as_those_of_one() -> None:
    total, entries = Lengths(), []
    for number in range(2000):
        report = TaskReport(number)
        held_out = {"evaluation": LengthCounts.of(np.array([3, 3]))} if number % 2 else {}
        report.lengths = {"train": LengthCounts.of(DRAW.permutation(50)), **held_out}
        total.take(report, "train", number % 2)
        assert not report.lengths
        entries.append(sum(len(one.lengths) for one in total._sums.values()))
    assert entries[-1] == entries[1] == 101
    assert total.of_split("train").counts.tolist() == [2000] * 50
    assert total.of_split("evaluation").measures(0)["examples"] == 2000
    assert [total.of_source("train", one).measures(0)["examples"] for one in (0, 1)] == [50_000, 52_000]
