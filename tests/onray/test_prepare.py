"""Preparation with Ray Data has the same results as in this process, and raises the same errors."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from tailor.artifacts import passage_scorer
from tailor.artifacts.passage_scorer import scorer_of
from tailor.data.token_store import TokenStore
from tailor.encode import sources
from tailor.encode.doctor.examine import examine
from tailor.encode.examples import Encoder
from tailor.encode.prepare import prepare
from tailor.encode.readers import FileRange
from tailor.encode.similarity.selection import Scan
from tailor.encode.tasks import Runner, Task, Work, in_process
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import DataError, ScaleError
from tailor.onray import prepare as onray_prepare
from tailor.onray.prepare import (
    SMALL_ALONE,
    SMALL_ON_CLUSTER,
    SMALL_SCORED,
    choose_runner,
    ray_runner,
    runner_by_size,
)
from tailor.spec.data import Data
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model
from tests.helpers.collections import embedding_model
from tests.helpers.models import byte_tokenizer
from tests.helpers.sentences import clean_rows
from tests.helpers.synonyms import ASKED, DEEP, FILL


def shards(tokens: TokenStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(tokens.url).iterdir())}


@pytest.mark.ray
def test_ray_equals_in_process(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART_BYTES", 4000)
    model = Model(path=str(byte_tokenizer(tmp_path / "model")))
    talks = [
        {
            "messages": [
                {"role": "user", "content": f"Say {n}."},
                {"role": "assistant", "content": f"It is {n}."},
            ]
        }
        for n in range(300)
    ]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"Text {n} é."}) + "\n" for n in range(300))
    )
    rows = [{"path": str(tmp_path / "talks.jsonl")}, {"path": str(tmp_path / "text.jsonl")}]
    data = Data(train=rows, holdout=0.2, template="chatml")

    def made(name: str, runner: Runner) -> TokenStore:
        return prepare(data, model, Sft(name="sft"), str(tmp_path / name), runner=runner).tokens

    here, there = made("here", in_process), made("there", ray_runner)
    assert len(shards(here)) > 20
    # The bytes of every shard, and of the manifest with the report.
    assert shards(there) == shards(here)

    # The pass over all rows before, and the doctor, whose results come in any order.
    rows += [{"path": str(tmp_path / "repeated.jsonl")}]
    (tmp_path / "repeated.jsonl").write_text(
        "".join(json.dumps(talk) + "\n" for talk in talks[:20] * 2 + clean_rows(3))
    )
    data = Data(train=rows, deduplicate="near", template="chatml")
    here, there = made("here", in_process), made("there", ray_runner)
    assert here.manifest["report"]["sources"][2]["removed"]["duplicate"]["count"] == 40
    assert shards(there) == shards(here)
    data = Data(train=rows, template="chatml")
    found = [
        examine(data, model, Sft(name="sft"), runner=runner).as_dict() for runner in (in_process, ray_runner)
    ]
    assert "duplicates" in {finding["check"] for finding in found[0]["findings"]}
    assert found[0] == found[1]

    (tmp_path / "bad.csv").write_text('text\n"a\n' + "x" * 10)
    with pytest.raises(DataError, match=r"bad.csv: none of its 2 rows can be used"):
        prepare(
            Data(train=[{"path": str(tmp_path / "bad.csv"), "format": "completion"}]),
            model,
            Sft(name="sft"),
            str(tmp_path / "t"),
            runner=ray_runner,
        )
    (tmp_path / "bad.json").write_text('{"data": [1, 2')
    with pytest.raises(DataError, match=r"bad.json is not valid JSON"):
        prepare(
            Data(train=[{"path": str(tmp_path / "bad.json"), "format": "text"}]),
            model,
            Sft(name="sft"),
            str(tmp_path / "t"),
            runner=ray_runner,
        )


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.ray
def test_ray_scores_passages_as_this_process_does(cluster, tmp_path, monkeypatch):
    """Actors with the model, compared with one process that has two threads."""
    monkeypatch.setattr(sources, "SCORED_PART_BYTES", 3000)
    model = Model(path=str(byte_tokenizer(tmp_path / "model")))
    draw = random.Random(0)
    rows = [
        {"prompt": " ".join(draw.choices(FILL.split() + DEEP.split(), k=150)) + ASKED, "response": " yes"}
        for _ in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    embedding_model(tmp_path / "embedder")

    def made(name: str, runner: Runner, **settings: str) -> TokenStore:
        data = Data(
            train=[{"path": str(tmp_path / "rows.jsonl")}],
            max_length=400,
            on_long="retrieve",
            retrieve={"passage": 64, "question": len(ASKED), **settings},
        )
        where, scorer = str(tmp_path / name), scorer_of(data)
        return prepare(data, model, Sft(name="sft"), where, scorer=scorer, runner=runner).tokens

    embedder = str(tmp_path / "embedder")
    torch.set_num_threads(2)
    here = made("here", in_process, embedder=embedder)
    torch.set_num_threads(1)
    assert len(shards(here)) > 4
    assert shards(made("there", ray_runner, embedder=embedder)) == shards(here)
    found, words = here.split("train"), made("words", in_process).split("train")
    same = [found.example(at).input_ids.tolist() == words.example(at).input_ids.tolist() for at in range(12)]
    assert not all(same), "the control: BM25 selects other passages"

    monkeypatch.setattr(passage_scorer, "PROCESS_BYTES", 1 << 60)
    with pytest.raises(ScaleError, match=r"^data.retrieve.embedder: a process with the embedder needs"):
        made("large", ray_runner, embedder=embedder)


def test_small_inputs_are_prepared_in_process(tmp_path):
    assert choose_runner(SMALL_ON_CLUSTER - 1, on_cluster=True) is in_process
    assert choose_runner(SMALL_ON_CLUSTER, on_cluster=True) is ray_runner
    assert choose_runner(SMALL_ON_CLUSTER, on_cluster=False) is in_process
    assert choose_runner(SMALL_ALONE, on_cluster=False) is ray_runner
    assert choose_runner(SMALL_SCORED - 1, on_cluster=True, scored=True) is in_process
    assert choose_runner(SMALL_SCORED, on_cluster=False, scored=True) is ray_runner
    connected = []
    runner = runner_by_size(lambda: connected.append(True), on_cluster=True)
    tokenizer = load_tokenizer(str(byte_tokenizer(tmp_path)))
    encoder = Encoder(tokenizer, None, train_on="assistant", max_length=8, on_long="drop")
    assert list(runner(Work(encoder, None, "", 128), [])) == []
    assert not connected


def test_a_runner_connects_once(monkeypatch):
    """Deduplication and preparation call the same runner."""
    monkeypatch.setattr(onray_prepare, "ray_runner", lambda work, tasks: iter([len(tasks)]))
    large = Task(0, "train", 0, (FileRange("a", "a", "jsonl", size=SMALL_ON_CLUSTER),), "text")
    connected = []
    runner = runner_by_size(lambda: connected.append(True), on_cluster=True)
    assert [list(runner(Scan(near=True), [large])) for _ in range(2)] == [[1], [1]]
    assert connected == [True]
