"""Folders and globs whose files say their splits, and evaluation rows that are training rows."""

from __future__ import annotations

import shutil

import pytest

from tailor.encode import sources
from tailor.encode.prepare import prepare
from tailor.encode.report import notes
from tailor.encode.splits import file_split
from tailor.encode.tasks import in_process
from tailor.errors import DataError
from tailor.spec.data import Data
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model
from tests.helpers.preparation import Bench, talk, write


def test_what_a_file_says():
    said = {
        "test-00000-of-00002.parquet": "test",
        "train.jsonl": "train",
        "my_dev_set.jsonl": "validation",
        "validation/0000.parquet": "validation",
        "train/test_cases.jsonl": "train",
        "data/eval.jsonl": "test",
        "latest.jsonl": None,
        "contest/brain.jsonl": None,
        "trainer.jsonl": None,
    }
    assert {name: file_split(name) for name in said} == said


def test_one_file_has_one_split(bench: Bench, folder):
    file = str(folder / "data" / "test-00000.jsonl")
    for split in ("test", "eval", "all"):
        assert read(bench, path=file, split=split) == 3
    with pytest.raises(DataError, match="is one file, which says test, and not split train"):
        read(bench, path=file, split="train")
    assert read(bench, path=bench.rows, split="train") == 200
    with pytest.raises(DataError, match="is one file, which says no split, and not split test"):
        read(bench, path=bench.rows, split="test")


def test_splits_of_own_names(bench: Bench):
    """As in ultrachat_200k; a file whose name only begins as documentation does has rows."""
    folder = bench.folder / "own"
    folder.mkdir()
    for at, name in enumerate(
        ("train_sft-00000-of-00001", "train_gen-00000-of-00001", "test_sft-00000-of-00001")
    ):
        write(folder / f"{name}.jsonl", [talk(n) for n in range(at + 1)])
    assert [
        read(bench, path=str(folder), split=split) for split in ("train_sft", "train_gen", "test_sft")
    ] == [1, 2, 3]
    assert read(bench, path=str(folder / "train_gen-00000-of-00001.jsonl"), split="train_gen") == 2
    with pytest.raises(DataError, match="no file of it says split test_gen"):
        read(bench, path=str(folder), split="test_gen")
    (bench.folder / "books").mkdir()
    for name in ("authors.jsonl", "notice.jsonl"):
        write(bench.folder / "books" / name, [talk(1)])
    assert read(bench, path=str(bench.folder / "books")) == 2


@pytest.fixture
def folder(bench: Bench):
    folder = bench.folder / "ds"
    (folder / "data").mkdir(parents=True)
    write(folder / "data" / "train-00000.jsonl", [talk(n) for n in range(5)])
    write(folder / "data" / "test-00000.jsonl", [talk(n) for n in range(5, 8)])
    write(folder / "dataset_infos.json", [{"default": {}}])
    (folder / "README.txt").write_text("About these rows.\n")
    (folder / ".gitattributes").write_text("*.parquet lfs\n")
    return folder


def read(bench: Bench, **source) -> int:
    return bench(train=[source]).tokens.manifest["report"]["sources"][0]["rows"]


def test_split_chooses_among_the_files_of_a_folder_or_glob(bench: Bench, folder):
    for path in (str(folder), f"{folder}/data/*.jsonl", f"{folder}/*/*-*"):
        assert read(bench, path=path, split="train") == 5
        assert read(bench, path=path, split="test") == 3
        assert read(bench, path=path, split="all") == 8
        with pytest.raises(
            DataError, match=r"its files are of several splits: test \(1\), train \(1\)"
        ) as caught:
            read(bench, path=path)
        assert caught.value.hint == "choose one, as split: train; split: all takes every file"
        with pytest.raises(DataError, match="no file of it says split validation"):
            read(bench, path=path, split="validation")
    # One split, or none, needs no word.
    assert read(bench, path=f"{folder}/data/test-*.jsonl") == 3
    assert read(bench, path=f"{folder}/data/test-00000.jsonl") == 3
    shutil.copy(folder / "data" / "train-00000.jsonl", folder / "data" / "more.jsonl")
    with pytest.raises(DataError, match=r"no split \(1\), test \(1\), train \(1\)"):
        read(bench, path=str(folder))


def evaluated(bench: Bench, trained, evaluated_on, **data):
    manifest = bench(train=trained, evaluation=evaluated_on, **data).tokens.manifest
    return manifest["report"], [source.get("in_training") for source in manifest["report"]["sources"]]


@pytest.mark.parametrize("size", [sources.PART_BYTES, 500])
def test_evaluation_rows_that_are_training_rows_are_counted(bench: Bench, monkeypatch, size):
    monkeypatch.setattr(sources, "PART_BYTES", size)
    first = write(bench.folder / "first.jsonl", [talk(n) for n in range(20)])
    # The same rows in another form, with keys in another order.
    other = [
        {
            "conversations": [
                {"value": m["content"], "from": {"user": "human"}.get(m["role"], "gpt")}
                for m in talk(n)["messages"]
            ]
        }
        for n in range(30, 40)
    ]
    second = write(bench.folder / "second.jsonl", other)
    own = write(bench.folder / "own.jsonl", [talk(n) for n in (50, 3, 51, 35, 52)])
    report, (_, _, found) = evaluated(bench, [{"path": first}, {"path": second}], [{"path": own}])
    assert found == {"count": 2, "first": [f"{own}:2", f"{own}:4"]}
    (note,) = notes(report, None)
    assert note.startswith(f"data.evaluation[0] {own}: 2 of 5 rows are also training rows ({own}:2, {own}:4)")
    # The control: other rows.
    apart = write(bench.folder / "apart.jsonl", [talk(n) for n in range(60, 65)])
    report, (_, _, found) = evaluated(bench, [{"path": first}, {"path": second}], [{"path": apart}])
    assert found == {"count": 0, "first": []}
    assert notes(report, None) == []


def test_training_tasks_report_only_the_rows_that_are_evaluated_too(bench: Bench, monkeypatch):
    """Of thousands of tasks, the process that merges their reports keeps no hash of every row."""
    monkeypatch.setattr(sources, "PART_BYTES", 500)
    trained = write(bench.folder / "trained.jsonl", [talk(n) for n in range(100)])
    own = [
        write(bench.folder / f"{name}.jsonl", [talk(n) for n in numbers])
        for name, numbers in {"first": (3, 100, 50), "second": (50, 200, 50)}.items()
    ]
    hashes: dict[str, list[int]] = {"train": [], "evaluation": []}

    def runner(work, tasks):
        for task, report in zip(tasks, in_process(work, tasks), strict=True):
            hashes[task.split].append(len(report.hashes))
            yield report

    data = Data(
        train=[{"path": trained}],
        evaluation=[{"path": path} for path in own],
        template="chatml",
        max_length=256,
    )
    model, method = Model(path=str(bench.model)), Sft(name="sft")
    manifest = prepare(data, model, method, bench.store, runner=runner).tokens.manifest
    assert len(hashes["train"]) > 10
    assert sum(hashes["train"]) == 2
    assert sum(hashes["evaluation"]) == 6
    found = [source["in_training"] for source in manifest["report"]["sources"][1:]]
    assert found == [
        {"count": 2, "first": [f"{own[0]}:1", f"{own[0]}:3"]},
        {"count": 2, "first": [f"{own[1]}:1", f"{own[1]}:3"]},
    ]
