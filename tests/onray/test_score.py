"""`tailor score`: a teacher's scores are those of its own library, whatever the number of workers, and rows distill as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tailor.artifacts.load_embedder import load_embedder
from tailor.cli.main import main
from tailor.encode.formats import formats_of, recognize
from tailor.evaluate import batches
from tailor.evaluate.mining import teacher
from tailor.onray.cluster import Cluster
from tailor.spec.data import RELEVANCE
from tests.helpers.collections import write_jsonl
from tests.helpers.synonyms import _ids, _tokenizer, trained_embedder

ROWS: list[dict[str, Any]] = [
    {
        "query": ["Find it", "wool linen"],
        "pos": [["", "wool cloth"], ["", "linen"]],
        "neg": [["", "sea"]],
        "id": 1,
    },
    {"query": ["Find it", "bread"], "pos": [["", "bread road"]], "neg": [], "id": 2},
    {
        "query": ["", "wool linen"],
        "pos": [["", "wool cloth"]],
        "neg": [["", "wind harbour sea"]],
        "scores": [1, 2],
    },
]


def cross_encoder(folder: Path, labels: int = 1) -> Path:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(_ids()),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=labels,
    )
    model = BertForSequenceClassification(config)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    _tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("score")
    trained_embedder(folder / "model")
    cross_encoder(folder / "reranker")
    cross_encoder(folder / "classifier", labels=3)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "anywhere.Transformer"}]
    (cross_encoder(folder / "custom") / "modules.json").write_text(json.dumps(modules))
    (cross_encoder(folder / "damaged") / "config.json").write_text('{"architectures": 3}')
    headless = cross_encoder(folder / "headless") / "model.safetensors"
    tensors = load_file(headless)
    del tensors["classifier.weight"]
    save_file(tensors, headless, {"format": "pt"})
    cut = cross_encoder(folder / "cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:200])
    for path in cross_encoder(folder / "wordless").glob("tokenizer*"):
        path.unlink()
    write_jsonl(folder / "rows.jsonl", ROWS)
    return folder


def score(place: Path, model: str, to: Path, *options: str) -> list[dict[str, Any]]:
    assert main(["score", str(place / model), str(place / "rows.jsonl"), str(to), *options]) == 0
    return [json.loads(line) for line in to.read_text().splitlines()]


def test_a_cross_encoder_gives_its_logits(place: Path, tmp_path: Path) -> None:
    """Those of transformers itself, for a query and each passage without their instructions."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows = score(place, "reranker", tmp_path / "out.jsonl")
    model = AutoModelForSequenceClassification.from_pretrained(place / "reranker")
    tokenizer = AutoTokenizer.from_pretrained(place / "reranker")
    for row in rows:
        for passages, scores in ((row["pos"], row["pos_scores"]), (row["neg"], row["neg_scores"])):
            for (_, text), found in zip(passages, scores, strict=True):
                with torch.no_grad():
                    expected = model(**tokenizer(row["query"][1], text, return_tensors="pt")).logits
                assert found == pytest.approx(float(expected), abs=1e-5)
    assert [row["teacher"] for row in rows] == ["reranker"] * 3
    assert len({score for row in rows for score in row["pos_scores"]}) > 1
    assert rows[0]["id"] == 1
    assert "scores" not in rows[2], "scores of another teacher are replaced"
    assert recognize(rows, {}, formats_of((RELEVANCE,))) == ["gritlm"]


def test_an_embedding_model_gives_its_similarities(place: Path, tmp_path: Path) -> None:
    rows = score(place, "model", tmp_path / "out.jsonl")
    model = load_embedder(str(place / "model"))
    for row in rows:
        query = model.encode([row["query"][1]], row["query"][0] or None)[0]
        texts = [text for _, text in (*row["pos"], *row["neg"])]
        assert np.allclose(model.encode(texts) @ query, [*row["pos_scores"], *row["neg_scores"]], atol=2e-6)
    assert rows[0]["pos_scores"] != rows[2]["pos_scores"], "the control: the instruction has an effect"


def test_a_killed_command_resumes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(teacher, "EMBEDDED", 2)
    expected = score(place, "reranker", tmp_path / "whole.jsonl")
    real, done = batches.Worker.__call__, []

    def dies(self: batches.Worker, batch: batches.EvaluationBatch) -> Any:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(batch.inputs)
        return real(self, batch)

    monkeypatch.setattr(batches.Worker, "__call__", dies)
    words = [str(place / "reranker"), str(place / "rows.jsonl"), str(tmp_path / "out.jsonl")]
    assert main(["score", *words]) == 130
    monkeypatch.setattr(batches.Worker, "__call__", real)
    assert score(place, "reranker", tmp_path / "out.jsonl") == expected
    assert "resuming: 2 of 5 rows are already done" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "whole.jsonl"]


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.ray
def test_the_number_of_workers_does_not_change_the_result(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster
) -> None:
    import ray

    from tests.helpers.evaluations import Joined

    monkeypatch.setattr(teacher, "EMBEDDED", 2)
    monkeypatch.setattr("tailor.onray.sharing.clusters.BackgroundStart", Joined(cluster))
    torch.set_num_threads(1)
    one = score(place, "reranker", tmp_path / "one.jsonl")
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    assert score(place, "reranker", tmp_path / "two.jsonl", "--workers", "2") == one


@pytest.mark.parametrize(
    ("model", "to", "message"),
    [
        ("classifier", "out.jsonl", "is a classifier with 3 labels"),
        ("custom", "out.jsonl", "has the custom module anywhere.Transformer"),
        ("damaged", "out.jsonl", "config.json is damaged"),
        ("headless", "out.jsonl", "the weights lack 1 tensors, for example classifier.weight"),
        ("cut", "out.jsonl", "sentence-transformers cannot load"),
        ("wordless", "out.jsonl", "tokenizer"),
        ("nowhere", "out.jsonl", "nowhere"),
        ("reranker", "out.parquet", "is not the name of a JSONL file"),
    ],
)
def test_errors(
    place: Path, tmp_path: Path, model: str, to: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(place / model), str(place / "rows.jsonl"), str(tmp_path / to)]) == 2
    assert message in capsys.readouterr().err


def test_truncated_pairs_are_counted(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cross-encoder reads 512 tokens."""
    rows = [{"query": "sea", "pos": ["wool " * count], "neg": ["sea"]} for count in (600, 500)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    words = [str(place / "reranker"), str(tmp_path / "rows.jsonl"), str(tmp_path / "out.jsonl")]
    assert main(["score", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["truncated"] == 1
