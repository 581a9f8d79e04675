"""Queries of a batch come from one dataset: a file, or the rows with one value of a column."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from tailor.data.facts import of_split
from tailor.data.grit_batches import GritBatch, GritBatches
from tailor.data.split import Split
from tailor.encode.prepare import prepare_all
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.plan.batches import BatchSpec
from tailor.spec.data import Data
from tailor.spec.methods.base import StreamSizes
from tailor.spec.methods.gritlm import Gritlm
from tailor.spec.model import Model
from tests.helpers.embedding_stores import make_grit_store
from tests.helpers.models import tiny_llama

FILES = {"nli": 9, "qa": 6, "titles": 3}


def pairs(name: str, count: int) -> list[dict[str, Any]]:
    return [
        {
            "query": ["", f"{name} {n}?"],
            "pos": [["", f"{name} {n}."]],
            "neg": [["", f"{name} other {n}"]],
            "task": name,
        }
        for n in range(count)
    ]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return load_tokenizer(str(model))


@pytest.fixture(scope="module", params=["files", "column"])
def split(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model: Path) -> Split:
    """The same rows as a folder of three files, and as two files whose column names the dataset."""
    folder = tmp_path_factory.mktemp(request.param)
    texts = [{"text": f"text {n}"} for n in range(7)]
    write(folder / "texts.jsonl", texts)
    source: dict[str, Any] = {"path": str(folder / "rows")}
    if request.param == "files":
        for name, count in FILES.items():
            write(folder / "rows" / f"{name}.jsonl", pairs(name, count))
    else:
        mixed = [row for name, count in FILES.items() for row in pairs(name, count)]
        write(folder / "rows" / "a.jsonl", mixed[::2])
        write(folder / "rows" / "b.jsonl", mixed[1::2])
        source["dataset_column"] = "task"
    data = Data.model_validate({"train": [source, {"path": str(folder / "texts.jsonl")}], "max_length": 64})
    prepared = prepare_all(data, Model(path=str(model)), Gritlm(name="gritlm"), str(folder / "tokens"))
    report = prepared.tokens.manifest["report"]["sources"][0]
    assert ("task" in report["unused"]) == (request.param == "files"), "the column is used"
    return prepared.tokens.split("train")


def made(
    split: Split, by: Literal["dataset", "source"], *, distinct: bool = False, **spec: Any
) -> GritBatches:
    streams = StreamSizes(queries=4, examples=2, group=2, distinct=distinct, by=by)
    batches = of_split(split, BatchSpec(seed=3, max_length=64, pack=False, streams=streams, **spec))
    assert isinstance(batches, GritBatches)
    return batches


def names(split: Split, tokenizer: Tokenizer, batch: Any) -> list[str]:
    """The dataset of each query, by its text."""
    assert isinstance(batch, GritBatch)
    queries = batch.text_examples()[: batch.queries]
    return [
        tokenizer.decode(split.example(int(at)).input_ids).split("?")[0].split()[-2].split(">")[-1]
        for at in queries
    ]


@pytest.mark.parametrize("distinct", [False, True])
def test_a_batch_has_queries_of_one_dataset(split: Split, tokenizer: Tokenizer, distinct: bool) -> None:
    batches = made(split, "dataset", distinct=distinct)
    for epoch in (batches.epoch(0), batches.epoch(1)):
        found = [names(split, tokenizer, batch) for batch in epoch]
        assert all(len(set(one)) == 1 for one in found), found
        assert Counter(name.strip() for one in found for name in one) == FILES
    evaluated = [batch for batch in batches.evaluation() if isinstance(batch, GritBatch) and batch.queries]
    assert all(len(set(names(split, tokenizer, batch))) == 1 for batch in evaluated)


def test_control_by_source_a_batch_mixes_datasets(split: Split, tokenizer: Tokenizer) -> None:
    found = [names(split, tokenizer, batch) for batch in made(split, "source").epoch(0)]
    assert any(len(set(one)) > 1 for one in found)


def test_the_examples_follow_each_other_when_epochs_differ_in_size(split: Split) -> None:
    """A weight of 0.5 draws other rows of each dataset in each epoch: one epoch has more batches than another."""
    batches = made(split, "dataset", weights=(0.5, 1.0))
    epochs = [batches.epoch(epoch) for epoch in range(12)]
    assert len({len(epoch) for epoch in epochs}) > 1, "the control"
    drawn = [row[0] for epoch in epochs for batch in epoch for row in batch[batch.texts :]]  # type: ignore[attr-defined]
    texts = [int(at) for at in range(len(split)) if split.source[at] == 1]
    rounds = [drawn[at : at + len(texts)] for at in range(0, len(drawn) - len(texts), len(texts))]
    assert len(rounds) > 5
    assert all(sorted(one) == texts for one in rounds)
    late = made(split, "dataset", weights=(0.5, 1.0)).epoch(11)
    assert [list(batch) for batch in late] == [list(batch) for batch in epochs[11]], (
        "also when asked for first"
    )


def test_an_epoch_draws_so_many_samples_of_a_source(tmp_path: Path) -> None:
    """Of 13 queries and 7 texts: other ones in each epoch, which has each at most once. The control has all rows."""
    store = make_grit_store(tmp_path, queries=13, examples=7).split("train")

    def drawn(epoch: int, **keys: Any) -> list[int]:
        streams = StreamSizes(queries=4, examples=0, group=1)
        batches = of_split(store, BatchSpec(seed=0, max_length=64, pack=False, streams=streams, **keys))
        assert isinstance(batches, GritBatches)
        of_epoch = [batch for batch in batches.epoch(epoch) if isinstance(batch, GritBatch)]
        return [int(query) for batch in of_epoch for query in batch.text_examples()[: batch.queries]]

    first, second = (drawn(epoch, samples=(5,)) for epoch in (0, 1))
    assert len(first) == len(set(first)) == len(second) == 5
    assert set(first) != set(second)
    assert len(drawn(0, samples=(100,))) == len(drawn(0)) == 13
    assert len(drawn(0, samples=(0,), weights=(2.0,))) == 26, "a source without samples has its weight"
