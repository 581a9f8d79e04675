"""`tailor search`: the passages that are nearest to a query, of rows or of a file of embeddings."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailor.artifacts.load_embedder import load_embedder
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


def test_truncated_texts_are_reported(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "wool " * 60  # a byte is a token, and the model reads 128
    assert found(place, capsys, QUERY)["truncated"] == 0
    assert found(place, capsys, QUERY, long)["truncated"] == 1
    assert main(["search", str(place / "model"), str(place / "rows.jsonl"), long]) == 0
    assert "1 text was longer than the model's maximum length and was truncated" in capsys.readouterr().err


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


def test_quantized_files_are_searched(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow.parquet as pq
    from sentence_transformers.util.quantization import quantize_embeddings

    def embed(name: str, *options: str, code: int = 0, model: str = "model") -> np.ndarray:
        words = [str(place / model), str(place / "rows.jsonl"), str(tmp_path / name), *options]
        assert main(["embed", *words]) == code
        if code:
            return np.zeros(0)
        return np.array(pq.read_table(tmp_path / name)["embedding"].to_pylist())

    full = embed("full.parquet").astype(np.float32)
    whole = quantize_embeddings(full, "int8", calibration_embeddings=full)
    assert np.abs(embed("int8.parquet", "--dtype", "int8").astype(int) - whole).max() <= 1
    bits = embed("bits.parquet", "--dtype", "ubinary")
    assert np.array_equal(bits, quantize_embeddings(full, "ubinary"))
    assert bits.shape == (40, 2)
    rows = found(place, capsys, QUERY, "--top", "5")["queries"][0]["passages"]
    for name, error in (("int8", 0.02), ("bits", 4.0)):
        hits = found(place, capsys, QUERY, "--top", "5", corpus=str(tmp_path / f"{name}.parquet"))
        (one,) = hits["queries"]
        scores = [abs(hit["score"] - row["score"]) for hit, row in zip(one["passages"], rows, strict=True)]
        assert max(scores) < error
    with_ranges = embed(
        "queries.parquet", "--dtype", "int8", "--instruction", ASK, "--ranges", str(tmp_path / "int8.parquet")
    )
    asked = embed("asked.parquet", "--instruction", ASK).astype(np.float32)
    expected = quantize_embeddings(asked, "int8", calibration_embeddings=full)
    assert np.abs(with_ranges.astype(int) - expected).max() <= 1
    own = quantize_embeddings(asked, "int8", calibration_embeddings=asked)
    assert np.abs(own.astype(int) - expected).max() > 1, "the control: other ranges give other numbers"
    capsys.readouterr()
    for options, message in {
        ("--ranges", str(tmp_path / "int8.parquet")): "--ranges has no effect with --dtype float32",
        ("--dtype", "int8", "--ranges", str(tmp_path / "full.parquet")): "it has no ranges",
        (
            "--dtype",
            "int8",
            "--ranges",
            str(place / "rows.jsonl"),
        ): "it is not a file that `tailor embed` wrote",
        (
            "--dtype",
            "int8",
            "--ranges",
            str(tmp_path / "int8.parquet"),
            "--dimension",
            "4",
        ): "its embeddings have 16",
    }.items():
        embed("odd.parquet", *options, code=2)
        assert message in capsys.readouterr().err
    embed("odd.parquet", "--dtype", "int8", "--ranges", str(tmp_path / "int8.parquet"), code=2, model="other")
    assert "int8.parquet has embeddings of" in capsys.readouterr().err
