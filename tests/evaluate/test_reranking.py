"""The task `reranking`: the order of cross-encoder scores over given candidates, BM25's, and those of rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tailor.cli.main import main
from tailor.encode import bm25
from tailor.errors import DataError
from tailor.evaluate.retrieval.candidates import read_candidates
from tailor.evaluate.retrieval.collection import Collection, Text
from tests.helpers.collections import JUDGED, QUERIES, beir_folder, passages, write_jsonl
from tests.helpers.encoders import tiny_cross_encoder
from tests.helpers.synonyms import trained_embedder

TEXTS = {one["_id"]: f"{one['title']} {one['text']}".strip() for one in passages()}
GIVEN = {"q1": ["d3", "d1", "d9", "d5"], "q2": ["d7", "d2"], "q3": ["d4", "d11", "d3"], "q4": ["d8"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reranking")
    tiny_cross_encoder(folder / "model")
    beir_folder(folder / "beir")
    lines = [
        f"{query} Q0 {passage} {rank} {-rank} first"
        for query, own in GIVEN.items()
        for rank, passage in enumerate(own, 1)
    ]
    (folder / "given.run").write_text("\n".join(lines))
    rows = [
        {"_id": 0, "query": text, "pos": [TEXTS["d1"]], "neg": [TEXTS[name] for name in GIVEN[query]]}
        for query, text in QUERIES[:2]
    ]
    write_jsonl(folder / "rows.jsonl", [{k: v for k, v in row.items() if k != "_id"} for row in rows])
    return folder


def figures(place: Path, tmp_path: Path, **task: Any) -> dict[str, float]:
    suite = {"tasks": [{"name": "reranking", "data": {"path": str(place / "beir")}, **task}]}
    (tmp_path / "suite.yaml").write_text(json.dumps(suite))
    to = tmp_path / "out"
    command = ["evaluate", str(place / "model"), "--with", str(tmp_path / "suite.yaml"), "--to", str(to)]
    assert main(command) == 0
    found = json.loads((to / "results.json").read_text())["figures"]
    return {one["figure"]: one["models"]["model"]["value"] for one in found}


def expected(place: Path, candidates: dict[str, list[str]]) -> dict[str, float]:
    """Independent: scores of sentence-transformers, NDCG and MRR by their formulas."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(place / "model"), device="cpu", activation_fn=torch.nn.Identity())
    found: dict[str, list[float]] = {"ndcg@10": [], "mrr@10": [], "first_stage/ndcg@10": []}
    for query, text in QUERIES:
        grades = {name: grade for of, name, grade in JUDGED if of == query}
        own = candidates[query]
        scores = model.predict([(text, TEXTS[name]) for name in own])
        ranked = [own[at] for at in np.argsort(-scores, kind="stable")]
        ideal = sum(g / np.log2(i + 2) for i, g in enumerate(sorted(grades.values(), reverse=True)[:10]))

        def ndcg(order: list[str], grades: dict[str, int] = grades, ideal: float = ideal) -> float:
            return float(sum(grades.get(one, 0) / np.log2(i + 2) for i, one in enumerate(order[:10])) / ideal)

        hits = [i for i, one in enumerate(ranked[:10]) if grades.get(one, 0) > 0]
        found["ndcg@10"].append(ndcg(ranked))
        found["mrr@10"].append(1 / (1 + hits[0]) if hits else 0.0)
        found["first_stage/ndcg@10"].append(ndcg(own))
    return {name: float(np.mean(values)) for name, values in found.items()}


def test_given_candidates_and_those_of_bm25(place: Path, tmp_path: Path) -> None:
    by_run = figures(place, tmp_path, candidates={"path": str(place / "given.run")})
    for name, value in expected(place, GIVEN).items():
        assert by_run[name] == pytest.approx(value, abs=1e-6), name
    assert by_run["ndcg@10"] != pytest.approx(by_run["first_stage/ndcg@10"], abs=1e-3), (
        "the control: other order"
    )
    (tmp_path / "bm25").mkdir()
    names, index = list(TEXTS), bm25.Index(TEXTS.values())
    best: dict[str, list[str]] = {}
    for query, text in QUERIES:
        scores = index.scores(text)
        best[query] = [names[at] for at in np.argsort(-scores, kind="stable")[:5] if scores[at] > 0]
    by_bm25 = figures(place, tmp_path / "bm25", depth=5)
    for name, value in expected(place, best).items():
        assert by_bm25[name] == pytest.approx(value, abs=1e-6), name


def test_the_candidates_of_a_row_are_its_passages(place: Path, tmp_path: Path) -> None:
    found = figures(place, tmp_path, data={"path": str(place / "rows.jsonl")})
    assert 0 < found["ndcg@10"] <= 1
    rows = [json.loads(line) for line in (tmp_path / "out" / "reranking.jsonl").read_text().splitlines()]
    assert len(rows) == 2


def test_truncated_pairs_are_counted(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model reads 96 tokens, here letters."""
    rows = [{"query": "sea", "pos": ["w" * count], "neg": ["sea"]} for count in (100, 95, 90, 80)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    figures(place, tmp_path, data={"path": str(tmp_path / "rows.jsonl")})
    summary = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert (summary["pairs"], summary["truncated"]) == (8, {"model": 2})
    assert "model: 2 texts were longer than the model's maximum length" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q1 Q0 d1 1", "4 columns"),
        ("q1 Q0 d1 1 high x", "'high' is not a finite number"),
        ("q1 Q0 d1 1 nan x", "'nan' is not a finite number"),
        ("q1 Q0 d1 1 2.0 x\nq1 Q0 d1 2 1.0 x", "the score 1, but 2 in "),
        ("score query-id corpus-id\n1 q1", "2 columns, and the header has 3"),
        ("q1 Q0 nowhere 1 2.0 x", "no passage 'nowhere'"),
        ("q9 Q0 d1 1 2.0 x", "no result is of a query"),
    ],
)
def test_wrong_results_are_errors(
    place: Path, tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong.run").write_text(content)
    task = {
        "name": "reranking",
        "data": {"path": str(place / "beir")},
        "candidates": {"path": str(tmp_path / "wrong.run")},
    }
    (tmp_path / "suite.yaml").write_text(json.dumps({"tasks": [task]}))
    command = [
        "evaluate",
        str(place / "model"),
        "--with",
        str(tmp_path / "suite.yaml"),
        "--to",
        str(tmp_path / "o"),
    ]
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_results_are_read_in_every_form(place: Path, tmp_path: Path) -> None:
    """Headers in any order, Windows' line ends, compressed files, ids that are numbers, and all files of a folder or pattern."""
    collection = Collection(
        [Text("1", "q"), Text("2", "q")], [Text(str(n), f"p{n}") for n in (3, 4, 5)], [{}, {}]
    )

    def found(path: Path | str) -> list[list[str]]:
        best = read_candidates(str(path), "key", collection, 2)
        return [[collection.corpus[at].id for at in own] for own in best]

    trec = b"\xef\xbb\xbf1 Q0 3 1 -2 x\r\n1 Q0 4 2 -1e1 x\r\n\r\n1 Q0 5 3 -2 x\r\n9 Q0 5 1 1 x\r\n2 Q0 4 1 7 x\r\n"
    best = [["3", "5"], ["4"]]  # of equal scores, the order of the file
    (tmp_path / "trec.run").write_bytes(trec)
    (tmp_path / "trec.txt.gz").write_bytes(gzip.compress(trec))
    rows = [("1", "3", -2), ("1", "4", -10), ("1", "5", -2), ("2", "4", 7)]
    lines = [f"{score}\t{passage}\t{query}" for query, passage, score in rows]
    (tmp_path / "other.tsv").write_text("\n".join(["", "score\tcorpus-id\tquery-id", *lines]))
    for name in ("trec.run", "trec.txt.gz", "other.tsv"):
        assert found(tmp_path / name) == best, name
    objects = [{"query-id": int(q), "corpus-id": int(p), "score": score} for q, p, score in rows]
    (tmp_path / "parts").mkdir()
    write_jsonl(tmp_path / "parts/a.jsonl", objects[:2])
    write_jsonl(tmp_path / "parts/b.jsonl", objects[2:])
    assert found(tmp_path / "parts") == found(tmp_path / "parts/*.jsonl") == best
    assert found(tmp_path / "parts/a.jsonl") != best, "the control: one of the files"
    write_jsonl(tmp_path / "none.jsonl", [{"query-id": None, "corpus-id": "3", "score": 1}])
    with pytest.raises(DataError, match="`query-id` must be an id, not None"):
        found(tmp_path / "none.jsonl")


def test_an_embedder_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained_embedder(tmp_path / "embedder")
    (tmp_path / "suite.yaml").write_text(
        json.dumps({"tasks": [{"name": "reranking", "data": {"path": str(place / "beir")}}]})
    )
    command = ["evaluate", str(tmp_path / "embedder"), "--with", str(tmp_path / "suite.yaml")]
    assert main([*command, "--to", str(tmp_path / "out")]) == 2
    assert "needs a model that scores pairs" in capsys.readouterr().err


@pytest.mark.soak
@pytest.mark.slow
def test_a_recipe_ends_with_it(place: Path, tmp_path: Path) -> None:
    """The run's own model, as `tailor evaluate` measures it."""
    rows = [{"query": text, "pos": [TEXTS["d1"]], "neg": [TEXTS["d3"]]} for _, text in QUERIES]
    write_jsonl(tmp_path / "train.jsonl", rows)
    task = {
        "name": "reranking",
        "data": {"path": str(place / "beir")},
        "candidates": {"path": str(place / "given.run")},
    }
    recipe = {
        "model": {"path": str(place / "model")},
        "data": {"train": [{"path": str(tmp_path / "train.jsonl")}], "max_length": 96},
        "method": {"name": "rerank", "group_size": 2},
        "optim": {"learning_rate": 1e-3},
        "train": {"steps": 2, "batch_size": 2, "precision": "fp32"},
        "evaluate": {"final": {"tasks": [task]}},
        "save": {"to": str(tmp_path / "run")},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["run", str(tmp_path / "recipe.yaml")]) == 0
    (results,) = (tmp_path / "run" / "evaluation").rglob("results.json")
    found = {one["figure"]: one["models"] for one in json.loads(results.read_text())["figures"]}
    assert found["first_stage/ndcg@10"] != found["ndcg@10"]
    suite = {"tasks": [task]}
    (tmp_path / "suite.yaml").write_text(json.dumps(suite))
    to = tmp_path / "again"
    assert (
        main(["evaluate", str(tmp_path / "run"), "--with", str(tmp_path / "suite.yaml"), "--to", str(to)])
        == 0
    )
    again = {one["figure"]: one["models"] for one in json.loads((to / "results.json").read_text())["figures"]}
    assert again == found
