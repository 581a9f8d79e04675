"""Retrieval of embedding models, from a collection to figures, answers and plots."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
import yaml

from tailor.artifacts.load_embedder import load_embedder
from tailor.cli.main import main
from tailor.errors import GateError, ModelError, TailorError
from tailor.evaluate import batches
from tailor.evaluate.retrieval import ranking
from tailor.evaluate.retrieval.metrics import relevance
from tailor.onray.evaluate import Evaluated, evaluate
from tailor.spec.load import with_overrides
from tests.helpers.collections import (
    JUDGED,
    QUERIES,
    beir_folder,
    embedding_model,
    pair_rows,
    passages,
    write_jsonl,
)
from tests.helpers.evaluations import Shown
from tests.helpers.models import tiny_llama

ASK = "Which passage is about it?"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrieval")
    beir_folder(folder / "beir")
    write_jsonl(folder / "rows.jsonl", pair_rows("Represent:"))
    embedding_model(folder / "one", projection=16)
    embedding_model(folder / "two", seed=1)
    return folder


def made(place: Path, to: Path, *, target: str = "one", **values: Any) -> Evaluated:
    task = {
        "name": "retrieval",
        "data": {"path": str(place / "beir")},
        "query_instruction": ASK,
        **values.pop("task", {}),
    }
    suite = with_overrides({"tasks": [task], "compare": "none", **values}, "e", [])
    return evaluate(str(place / target), suite, Shown(), name="e", to=str(to))


def figures(outcome: Evaluated, model: str = "one") -> dict[str, float]:
    return {entry["figure"]: entry["models"][model]["value"] for entry in outcome.results["figures"]}


def test_figures_match_trec_eval_on_the_embeddings(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "EMBEDDED", 7)
    monkeypatch.setattr(ranking, "TILE", 3)
    outcome = made(place, tmp_path / "e")
    embedder = load_embedder(str(place / "one"))
    asked = embedder.encode([text for _, text in QUERIES], ASK)
    found = embedder.encode([f"{row['title']} {row['text']}".strip() for row in passages()])
    run = {
        name: {row["_id"]: float(score) for row, score in zip(passages(), scores, strict=True)}
        for (name, _), scores in zip(QUERIES, asked @ found.T, strict=True)
    }
    judged: dict[str, dict[str, int]] = {}
    for query, passage, grade in JUDGED:
        judged.setdefault(query, {})[passage] = grade
    theirs = pytrec_eval.RelevanceEvaluator(judged, {"recall.1,5,10,100", "ndcg_cut.10", "map_cut.100"})
    each = theirs.evaluate(run).values()
    wanted = {name: float(np.mean([one[name] for one in each])) for name in next(iter(each))}
    mine = figures(outcome)
    for name, their in (("recall@10", "recall_10"), ("ndcg@10", "ndcg_cut_10"), ("map@100", "map_cut_100")):
        assert mine[name] == pytest.approx(wanted[their], abs=1e-12)
        assert 0 < mine[name] < 1, "the control: nothing trivial"
    rows = [json.loads(line) for line in outcome.folder.read_text("retrieval.jsonl").splitlines()]
    assert rows[0]["relevant"] == {"d1": 2, "d5": 1}
    assert rows[0]["instruction"] == ASK
    best = max(run["q1"], key=lambda name: run["q1"][name])
    first = rows[0]["models"]["one"]["found"][0]
    assert (first["id"], first["score"]) == (best, pytest.approx(run["q1"][best], abs=1e-6))
    assert outcome.results["rows"]["corpus"] == 40
    assert outcome.folder.read_bytes("figures.png").startswith(b"\x89PNG")
    again = made(place, tmp_path / "again", task={"query_instruction": "Anything else?"})
    assert figures(again) != mine, "the control: the instruction is read"


def test_smaller_embeddings_are_measured_beside_the_full_ones(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "EMBEDDED", 7)
    sizes, precisions = [12, 4, 2], ["int8", "ubinary"]
    found = figures(made(place, tmp_path / "all", task={"dimensions": sizes, "precisions": precisions}))
    plain = figures(made(place, tmp_path / "plain"))
    assert {name: found[name] for name in plain} == plain, "the full embeddings are measured as without"
    assert len(found) == len(plain) + 2 * 5
    for size in sizes:
        alone = figures(made(place, tmp_path / str(size), task={"dimension": size}))
        for metric in ("ndcg@10", "recall@10"):
            assert found[f"{size}/{metric}"] == pytest.approx(alone[metric], abs=1e-12)
    assert len({round(found[f"{size}/ndcg@10"], 6) for size in sizes}) > 1, "the control: sizes differ"
    embedder = load_embedder(str(place / "one"))
    asked = embedder.encode([text for _, text in QUERIES], ASK)
    bits = embedder.encode([f"{row['title']} {row['text']}".strip() for row in passages()]) > 0
    judged = [{at: grade for name, at, grade in _judged() if name == query} for query, _ in QUERIES]
    ids = [row["_id"] for row in passages()]
    scores = asked @ (bits * 2.0 - 1).T
    order = [
        sorted(range(40), key=lambda at: (one[at], ids[at]), reverse=True)
        for one in scores.astype(np.float32)
    ]
    expected = [relevance(own, grades)["ndcg@10"] for own, grades in zip(order, judged, strict=True)]
    assert found["ubinary/ndcg@10"] == pytest.approx(float(np.mean(expected)), abs=1e-6)
    assert abs(found["int8/ndcg@10"] - plain["ndcg@10"]) < 0.2
    with pytest.raises(ModelError, match=r"tasks\[0\]\.dimensions: 32 is larger than the 16 dimensions"):
        made(place, tmp_path / "large", task={"dimensions": [32]})


def _judged() -> list[tuple[str, int, int]]:
    """(query, index of the passage, grade)."""
    return [(query, int(passage[1:]), grade) for query, passage, grade in JUDGED]


def test_compared_models_and_a_bound(place: Path, tmp_path: Path) -> None:
    outcome = made(
        place,
        tmp_path / "e",
        task={"data": {"path": str(place / "rows.jsonl")}, "query_instruction": None},
        compare=[str(place / "two")],
        fail_if={"ndcg@10": "< 1", "recall@1": "< 0"},
    )
    (entry,) = [one for one in outcome.results["figures"] if one["figure"] == "ndcg@10"]
    difference = entry["models"]["one"]["value"] - entry["models"]["two"]["value"]
    assert entry["differences"]["two"]["value"] == pytest.approx(difference)
    low, high = entry["models"]["one"]["interval"]
    assert low < entry["models"]["one"]["value"] < high
    assert entry["rows"] == 12
    with pytest.raises(GateError, match=r"e: ndcg@10 is 0\.\d+, and fail_if says < 1"):
        outcome.require()


def test_a_shorter_embedding(place: Path, tmp_path: Path) -> None:
    assert figures(made(place, tmp_path / "a", task={"dimension": 4})) != figures(made(place, tmp_path / "b"))
    with pytest.raises(
        ModelError, match=r"dimension: 99 is larger than the 16 dimensions of the embeddings of .*/one"
    ):
        made(place, tmp_path / "c", task={"dimension": 99})


def test_a_killed_search_resumes(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "EMBEDDED", 7)
    expected = figures(made(place, tmp_path / "whole"))
    real, done = batches.Worker.__call__, []

    def dies(self: batches.Worker, batch: batches.EvaluationBatch) -> Any:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(batch)
        return real(self, batch)

    monkeypatch.setattr(batches.Worker, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        made(place, tmp_path / "killed")

    def counts(self: batches.Worker, batch: batches.EvaluationBatch) -> Any:
        done.append(batch)
        return real(self, batch)

    monkeypatch.setattr(batches.Worker, "__call__", counts)
    assert figures(made(place, tmp_path / "killed")) == expected
    assert len(done) == len(set(map(repr, done))) == 7, "no text was embedded twice"


def test_truncated_texts_are_reported(place: Path, tmp_path: Path) -> None:
    rows = [{"query": "wool " * 60, "pos": ["wool"]}, {"query": "b", "pos": ["linen"]}]
    data = {"path": str(write_jsonl(tmp_path / "long.jsonl", rows))}
    outcome = made(place, tmp_path / "e", task={"data": data})
    assert outcome.results["rows"]["truncated"] == {"one": 1}


@pytest.mark.parametrize(
    ("target", "values", "text"),
    [
        ("plain", {}, "PLACE/plain is not an embedding model: it has no embedding.json"),
        (
            "one",
            {"compare": ["PLACE/plain"]},
            "PLACE/plain is not an embedding model: it has no embedding.json",
        ),
        (
            "one",
            {"task": {"data": {"path": "PLACE/none"}}},
            "e: tasks.0.data.path: no such file or folder: PLACE/none",
        ),
    ],
)
def test_errors_are_reported(
    place: Path, tmp_path: Path, target: str, values: dict[str, Any], text: str
) -> None:
    if not (place / "plain").exists():
        tiny_llama(place / "plain")
    values = json.loads(json.dumps(values).replace("PLACE", str(place)))
    with pytest.raises(TailorError) as caught:
        made(place, tmp_path / "e", target=target, **values)
    assert str(caught.value).replace(str(place), "PLACE").startswith(text)


def test_the_command_shows_what_was_found(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(
        f"tasks: [{{name: retrieval, data: {{path: {place}/rows.jsonl, limit: 3}}}}]\ncompare: none\n"
    )
    assert main(["evaluate", str(place / "one"), "--with", str(file), "--to", str(tmp_path / "e")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ndcg@10 % +[\d.]+ \[[\d.]+, [\d.]+\] +3$", out, re.MULTILINE), out
    assert re.search(r"^query +best of one", out, re.MULTILINE)
    assert re.search(r"^corpus +25 passages$", out, re.MULTILINE)
    again = with_overrides(yaml.safe_load((tmp_path / "e" / "evaluation.yaml").read_text()), "again", [])
    assert figures(evaluate(str(place / "one"), again, Shown(), name="e", to=str(tmp_path / "f"))) == {
        entry["figure"]: entry["models"]["one"]["value"]
        for entry in json.loads((tmp_path / "e" / "results.json").read_text())["figures"]
    }
