"""`tailor search`: the passages that are nearest to a query, of rows or of a file of embeddings."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailor.artifacts.load import load_embedder
from tailor.cli.main import main
from tests.helpers.collections import embedding_model, passages, write_jsonl

ASK = "Find it:"
QUERY = "wool coat"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    embedding_model(folder / "model", projection=16)
    embedding_model(folder / "other", projection=16, seed=1)
    write_jsonl(folder / "rows.jsonl", passages())
    return folder


def found(place: Path, capsys: pytest.CaptureFixture[str], *words: str, corpus: str = "rows.jsonl") -> Any:
    capsys.readouterr()
    assert main(["search", str(place / "model"), str(place / corpus), *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_nearest_passages_come_first(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [row["text"] for row in passages()]
    model = load_embedder(str(place / "model"))
    scores = model.encode(texts) @ model.encode([QUERY], ASK)[0]
    order = sorted(range(len(texts)), key=lambda at: (-scores[at], at))[:3]
    shown = found(place, capsys, QUERY, "--instruction", ASK, "--top", "3")
    assert shown["passages"] == 40
    (one,) = shown["queries"]
    assert one["query"] == QUERY
    assert [hit["row"] for hit in one["passages"]] == [at + 1 for at in order]
    assert [hit["text"] for hit in one["passages"]] == [texts[at] for at in order]
    assert np.allclose([hit["score"] for hit in one["passages"]], scores[order], atol=1e-5)
    without = found(place, capsys, QUERY, "--top", "3")["queries"][0]["passages"]
    assert without[0]["score"] != one["passages"][0]["score"], "the control: the instruction has an effect"


def test_a_file_of_embeddings_is_searched_as_it_is(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(place / "model"), str(place / "rows.jsonl"), str(place / "out.parquet")]
    assert main(["embed", *words, "--keep", "_id", "--keep", "text"]) == 0
    rows = found(place, capsys, QUERY)["queries"][0]["passages"]
    written = found(place, capsys, QUERY, corpus="out.parquet")["queries"][0]["passages"]
    assert [hit["row"] for hit in written] == [hit["row"] for hit in rows]
    assert written[0]["text"] == f"d{rows[0]['row'] - 1} {rows[0]['text']}"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUERY}\n\nlinen\n"))
    capsys.readouterr()
    assert main(["search", str(place / "model"), str(place / "out.parquet"), "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[2]] == [QUERY, "linen"]
    assert lines[1].startswith("  1  ")
    assert f"row {rows[0]['row']}  " in lines[1]
    assert main(["search", str(place / "other"), str(place / "out.parquet"), QUERY]) == 2
    assert "has embeddings of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("corpus", "words", "text"),
    [
        ("rows.jsonl", ["a", "--column", "titel", "--column", "text"], "no row has the column `titel`"),
        ("rows.jsonl", [" "], "the query is empty"),
        ("none.jsonl", ["a"], "does not exist"),
    ],
)
def test_errors(
    place: Path, capsys: pytest.CaptureFixture[str], corpus: str, words: list[str], text: str
) -> None:
    assert main(["search", str(place / "model"), str(place / corpus), *words]) == 2
    assert text in capsys.readouterr().err
