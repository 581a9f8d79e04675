"""`data.deduplicate` and `data.decontaminate` in preparation: which rows are left out, counts, and the fingerprint."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tailor.encode import sources
from tailor.encode.prepare import Prepared
from tailor.encode.similarity import signatures
from tailor.errors import DataError
from tests.helpers.preparation import Bench, contents, talk, write
from tests.helpers.sentences import chat, clean_rows


def changed(row: dict[str, Any], word: str = "zipper") -> dict[str, Any]:
    """The row with one word of its answer replaced."""
    other = copy.deepcopy(row)
    words = other["messages"][1]["content"].split()
    words[len(words) // 2] = word
    other["messages"][1]["content"] = " ".join(words)
    return other


def report(prepared: Prepared, source: int = 0) -> dict[str, Any]:
    return prepared.tokens.manifest["report"]["sources"][source]


def removed(prepared: Prepared, source: int = 0) -> dict[str, int]:
    return {reason: rows["count"] for reason, rows in report(prepared, source)["removed"].items()}


def rows_kept(prepared: Prepared) -> list[tuple[int, int]]:
    return sorted({(source, row) for source, row, _, _ in contents(prepared.tokens)})


@pytest.fixture
def repeated(bench: Bench) -> Bench:
    """20 clean rows, an unreadable one, 3 equal ones (21 to 24 without the broken row), 2 nearly equal ones."""
    rows: list[Any] = clean_rows(20)
    rows += ["{broken", rows[4], rows[5], rows[4], changed(rows[6]), changed(rows[6], "anvil"), talk(1)]
    bench.rows = write(bench.folder / "rows.jsonl", rows)
    return bench


def prepared_with(bench: Bench, **data: Any) -> Prepared:
    return bench(max_length=4096, budget={"unreadable": 0.1}, **data)


def test_without_the_key_every_row_is_kept(repeated: Bench) -> None:
    whole = prepared_with(repeated)
    assert removed(whole) == {}
    assert report(whole)["kept"] == 26


def test_exact_and_near(repeated: Bench) -> None:
    exact, near = (prepared_with(repeated, deduplicate=how) for how in ("exact", "near"))
    assert removed(exact) == {"duplicate": 3}
    assert removed(near) == {"duplicate": 3, "near_duplicate": 2}
    for prepared in (exact, near):
        counts = report(prepared)
        lost = [*counts["unreadable"].values(), *counts["dropped"].values(), *counts["removed"].values()]
        assert counts["kept"] + sum(rows["count"] for rows in lost) == counts["rows"] == 27
    assert rows_kept(exact) == [(0, row) for row in (*range(1, 21), 25, 26, 27)]
    assert rows_kept(near) == [(0, row) for row in (*range(1, 21), 27)]
    path = repeated.rows
    assert report(near)["removed"]["duplicate"]["first"] == [
        [f"{path}:22", f"repeats {path}:5"],
        [f"{path}:23", f"repeats {path}:6"],
        [f"{path}:24", f"repeats {path}:5"],
    ]
    assert [detail for _, detail in report(near)["removed"]["near_duplicate"]["first"]] == [
        f"repeats {path}:7"
    ] * 2


def test_the_key_is_part_of_the_fingerprint(repeated: Bench) -> None:
    benchmark = write(repeated.folder / "benchmark.jsonl", [{"q": "one two three four five six seven eight"}])
    variants: list[dict[str, Any]] = [
        {},
        {"deduplicate": "exact"},
        {"deduplicate": "near"},
        {"decontaminate": [{"path": benchmark}]},
    ]
    names = [prepared_with(repeated, **keys).tokens.fingerprint for keys in variants]
    assert len(set(names)) == 4
    assert prepared_with(repeated, deduplicate="near").reused
    write(Path(benchmark), [{"q": "one two three four five six seven nine"}])
    assert not prepared_with(repeated, decontaminate=[{"path": benchmark}]).reused


@pytest.mark.parametrize("how", ["exact", "near"])
def test_tasks_make_no_difference(bench: Bench, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kept rows, counts and named rows for 1, 2 and 8 tasks."""
    rows = clean_rows(160)
    for at in range(40, 150, 10):
        rows[at], rows[at + 1] = rows[at - 37], changed(rows[at - 36])
    path = bench.rows = write(bench.folder / "rows.jsonl", rows)
    found = []
    for tasks in (1, 2, 8):
        monkeypatch.setattr(sources, "PART_BYTES", -(-Path(path).stat().st_size // tasks))
        prepared = bench(max_length=4096, deduplicate=how, store=f"{bench.store}{tasks}")
        assert len(prepared.tokens.manifest["shards"]) == tasks
        found.append((contents(prepared.tokens), report(prepared)["removed"]))
    assert found[0] == found[1] == found[2]
    expected = {"duplicate": 11, "near_duplicate": 11} if how == "near" else {"duplicate": 11}
    assert {reason: one["count"] for reason, one in found[0][1].items()} == expected


def test_over_all_sources_the_first_one_keeps_the_row(bench: Bench) -> None:
    first, second = clean_rows(6), clean_rows(6, seed=1)
    paths = [
        write(bench.folder / "a.jsonl", first),
        write(bench.folder / "b.jsonl", [*second, first[2], second[0]]),
    ]
    evaluation = write(bench.folder / "e.jsonl", [first[0], first[0]])
    prepared = bench(
        train=[{"path": path} for path in paths],
        evaluation=[{"path": evaluation}],
        deduplicate="exact",
        max_length=4096,
    )
    assert [removed(prepared, source) for source in range(3)] == [{}, {"duplicate": 2}, {}]
    assert report(prepared, 1)["removed"]["duplicate"]["first"][0][1] == f"repeats {paths[0]}:3"


def test_different_rows_are_no_duplicates(bench: Bench) -> None:
    """Rows that share a system text, a long prompt or an answer, and formulas that differ in a sign."""
    system = {"role": "system", "content": "You are a careful helper. " * 30}
    passage = clean_rows(1)[0]["messages"][1]["content"] * 4
    rows = [{"messages": [system, *talk(n)["messages"]]} for n in range(5)]
    rows += [chat(f"{passage} Who?", "The tailor."), chat(f"{passage} Where?", "In the old kitchen.")]
    rows += [
        chat("2 + 2 = ?", "Good."),
        chat("2 - 2 = ?", "Good."),
        chat("Nice?", "Good."),
        chat("🙂", "🙃"),
        chat("🙃", "🙂"),
    ]
    rows += [chat("你好吗", "我很好"), chat("你是谁", "我是人")]
    path = write(bench.folder / "rows.jsonl", rows)
    prepared = bench(train=[{"path": path}], deduplicate="near", max_length=4096)
    assert removed(prepared) == {}
    # Control: case, punctuation, spaces and the form of Unicode are no difference.
    rows += [chat("NICE", "good!"), chat("ｎｉｃｅ  ?", "good")]
    path = write(bench.folder / "rows.jsonl", rows)
    assert removed(bench(train=[{"path": path}], deduplicate="near", max_length=4096)) == {
        "near_duplicate": 2
    }


def test_decontaminate(bench: Bench) -> None:
    rows = clean_rows(12)
    question = "Which of the seven tailors of the old town sewed the green coat of the mayor?"
    rows[3] = chat(f"Think. {question.upper()} Answer now.", "The third one.")
    rows[5] = chat("What is the capital of Peru?", "Lima.")
    rows[7] = chat("What is the capital of Peru and of the whole of the Andes?", "Lima.")
    rows[9] = chat("Answer the question with one word only please, my friend", "Lima.")
    shared = "Answer the question with one word only please, my friend"
    tests = [{"id": n, "prompt": {"instruction": shared, "question": [f"number {n}"]}} for n in range(8)]
    tests += [
        {"prompt": {"instruction": shared, "question": [question]}},
        {"question": "What is the capital of Peru?"},
    ]
    bench.rows = write(bench.folder / "rows.jsonl", rows)
    benchmark = write(bench.folder / "benchmark.jsonl", tests)
    prepared = bench(decontaminate=[{"path": benchmark}], max_length=4096)
    assert removed(prepared) == {"contaminated": 2}
    assert report(prepared)["removed"]["contaminated"]["first"] == [
        [f"{bench.rows}:4", f"contains 100% of {benchmark}:9"],
        [f"{bench.rows}:6", f"contains 100% of {benchmark}:10"],
    ]
    assert rows_kept(prepared) == [(0, row) for row in range(1, 13) if row not in (4, 6)]
    # Control: only the first rows of the benchmark.
    assert removed(bench(decontaminate=[{"path": benchmark, "limit": 8}], max_length=4096)) == {}


def test_the_budget_does_not_limit_what_the_recipe_removes(bench: Bench) -> None:
    rows = [talk(1)] * 9 + [talk(2)]
    prepared = bench(train=[{"path": write(bench.folder / "rows.jsonl", rows)}], deduplicate="exact")
    assert (report(prepared)["kept"], removed(prepared)) == (2, {"duplicate": 8})
    paths = [write(bench.folder / f"{name}.jsonl", rows) for name in "ab"]
    with pytest.raises(DataError, match="none of its 10 rows can be used") as caught:
        bench(train=[{"path": path} for path in paths], deduplicate="exact")
    assert (
        caught.value.hint
        == "remove the source, or change data.deduplicate, data.decontaminate or data.min_length"
    )


def test_near_without_datasketch_is_an_error(repeated: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "is_installed", lambda: False)
    assert removed(prepared_with(repeated, deduplicate="exact")) == {"duplicate": 3}
    with pytest.raises(DataError, match="near duplicates need the package datasketch") as caught:
        prepared_with(repeated, deduplicate="near")
    assert caught.value.hint == "pip install 'tailor[doctor]'"


def test_a_missing_benchmark_is_named(repeated: Bench) -> None:
    with pytest.raises(DataError, match=r"data.decontaminate\[0\] none.jsonl: does not exist"):
        prepared_with(repeated, decontaminate=[{"path": "none.jsonl"}])
