"""`tailor embed`: the same embeddings for any number of workers and batch size, after a kill, and on any storage."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tailor.artifacts.load_embedder import load_embedder
from tailor.cli.main import main
from tailor.errors import DataError
from tailor.evaluate import batches, embed_file
from tailor.onray.cluster import Cluster
from tailor.store import Store
from tests.helpers.collections import embedding_model, passages, write_jsonl
from tests.helpers.models import tiny_llama

ASK = "Represent this text:"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed")
    embedding_model(folder / "model", projection=16)
    write_jsonl(folder / "rows.jsonl", passages())
    return folder


def texts() -> list[str]:
    return [row["text"] for row in passages()]


def run(place: Path, to: str | Path, *options: str, source: str | Path | None = None, code: int = 0) -> None:
    words = [str(place / "model"), str(source or place / "rows.jsonl"), str(to), *options]
    assert main(["embed", *words]) == code


def vectors(path: Path) -> np.ndarray:
    return np.array(pq.read_table(path)["embedding"].to_pylist(), np.float32)


def key_values(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of all files of key-values."""
    return {name: one for file in folder.glob("part-*") for name, one in load_file(file).items()}


def test_rows_keep_their_order_and_columns(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embed_file, "EMBEDDED", 7)
    run(place, tmp_path / "out.parquet", "--keep", "_id", "--keep", "title", "--instruction", ASK)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["row", "_id", "title", "embedding"]
    assert table["row"].to_pylist() == list(range(1, 41))
    assert table["_id"].to_pylist() == [row["_id"] for row in passages()]
    expected = load_embedder(str(place / "model")).encode(texts(), ASK)
    assert np.abs(vectors(tmp_path / "out.parquet") - expected).max() < 1e-5
    plain = load_embedder(str(place / "model")).encode(texts())
    assert np.abs(vectors(tmp_path / "out.parquet") - plain).max() > 0.01, (
        "the control: the instruction has an effect"
    )
    assert json.loads(table.schema.metadata[b"tailor"])["instruction"] == ASK
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet"]
    assert capsys.readouterr().out.endswith(f"40 embeddings written to {tmp_path}/out.parquet\n")


def test_columns_are_joined_and_embeddings_shortened(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "out.parquet", "--column", "title", "--column", "text", "--dimension", "4")
    joined = [f"{row['title']} {row['text']}".strip() for row in passages()]
    expected = load_embedder(str(place / "model"), dimension=4).encode(joined)
    assert np.abs(vectors(tmp_path / "out.parquet") - expected).max() < 1e-5


def test_numbers_are_written_in_the_data_type_that_is_named(place: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    shutil.copytree(place / "model", tmp_path / "model")
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "model")
    run(tmp_path, tmp_path / "whole.parquet", source=place / "rows.jsonl")
    lengths = np.linalg.norm(vectors(tmp_path / "whole.parquet").astype(np.float64), axis=1)
    assert np.abs(lengths - 1).max() < 1e-6, "normalized in float32, also with bf16 weights"
    run(tmp_path, tmp_path / "half.parquet", "--dtype", "float16", source=place / "rows.jsonl")
    assert pq.read_schema(tmp_path / "half.parquet").field("embedding").type.value_type == pa.float16()
    expected = vectors(tmp_path / "whole.parquet").astype(np.float16).astype(np.float32)
    assert np.array_equal(vectors(tmp_path / "half.parquet"), expected)
    parts = embed_file.EmbeddingParts(Store(str(tmp_path / "parts")), "x", pa.schema([]), "float16")
    large = batches.Embedded(np.full((1, 2), 1e5, np.float32), 0)
    with pytest.raises(DataError, match="--dtype float16: it cannot represent the embeddings"):
        parts.write(0, embed_file.Batch(1, ("a",), ({},)), large)


def test_a_killed_command_resumes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embed_file, "EMBEDDED", 7)
    run(place, tmp_path / "whole.parquet")
    real, done = batches.Worker.__call__, []

    def dies(self: batches.Worker, batch: batches.EvaluationBatch) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(batch)
        return real(self, batch)

    monkeypatch.setattr(batches.Worker, "__call__", dies)
    run(place, tmp_path / "out.parquet", code=130)
    assert not (tmp_path / "out.parquet").exists()
    assert len(list((tmp_path / "out.parquet.unfinished").glob("part-*"))) == 3
    assert "run the same command again to continue after the finished rows" in capsys.readouterr().err

    def counts(self: batches.Worker, batch: batches.EvaluationBatch) -> Any:
        done.append(batch)
        return real(self, batch)

    monkeypatch.setattr(batches.Worker, "__call__", counts)
    run(place, tmp_path / "out.parquet")
    assert "resuming: 21 of 40 rows are already done" in capsys.readouterr().out
    assert [batch.inputs[0] for batch in done] == texts()[::7], "no text was embedded twice"
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    run(place, tmp_path / "other.parquet", "--instruction", ASK)
    assert (tmp_path / "other.parquet").read_bytes() != (tmp_path / "whole.parquet").read_bytes()


def test_another_model_starts_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control of resuming: results with another instruction are not used."""
    monkeypatch.setattr(embed_file, "EMBEDDED", 7)
    real = batches.Worker.__call__
    calls: list[Any] = []

    def dies(self: batches.Worker, batch: batches.EvaluationBatch) -> Any:
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(batches.Worker, "__call__", dies)
    run(place, tmp_path / "out.parquet", "--instruction", "Another one:", code=130)
    monkeypatch.setattr(batches.Worker, "__call__", real)
    run(place, tmp_path / "out.parquet")
    assert "removed the unfinished results of a different input, model or setting" in capsys.readouterr().out
    run(place, tmp_path / "alone.parquet")
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "alone.parquet").read_bytes()


def test_input_and_output_on_any_storage(place: Path, tmp_path: Path) -> None:
    remote = Store("memory://embed")
    remote.write_bytes("in/rows.jsonl", (place / "rows.jsonl").read_bytes())
    run(place, "memory://embed/out.parquet", source="memory://embed/in/rows.jsonl")
    run(place, tmp_path / "out.parquet")
    with remote.open("out.parquet") as stream:
        there = np.array(pq.read_table(stream)["embedding"].to_pylist(), np.float32)
    assert np.array_equal(there, vectors(tmp_path / "out.parquet"))
    assert remote.names() == ["in", "out.parquet"]


def test_truncated_texts_are_reported(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = write_jsonl(tmp_path / "long.jsonl", [{"text": "wool " * 60}, {"text": "linen"}])
    run(place, tmp_path / "out.parquet", source=long)
    assert "1 text was longer than the model's maximum length and was truncated\n" in capsys.readouterr().out


def test_columns_that_some_rows_lack_are_counted(tmp_path: Path) -> None:
    """A column of a table exists even without a value; one that no row has is an error, in every kind of file."""
    rows = [{"text": "a", "id": "1"}, {"text": "b"}, {"text": "c", "id": None}]
    pq.write_table(pa.table({"text": ["a"], "id": pa.array([None], pa.string())}), tmp_path / "in.parquet")
    (tmp_path / "in.csv").write_text("text,id\na,\n")
    write_jsonl(tmp_path / "in.jsonl", rows)
    for name, absent in (("in.jsonl", 2), ("in.parquet", 1), ("in.csv", 1)):
        request = embed_file.Request(str(tmp_path / name), keep=("id",))
        files = embed_file.find_input(request)
        assert embed_file.scan_input(files, request).absent == {"id": absent}
        with pytest.raises(DataError, match="--keep: no row has the column `ids`; the columns are text, id"):
            embed_file.scan_input(files, replace(request, keep=("ids",)))


def test_the_output_keeps_its_name_if_rows_lack_a_column(place: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"text": "a", "id": "1"}, {"text": "b"}])
    out = tmp_path / "out.parquet"
    assert main(["embed", str(place / "model"), str(tmp_path / "in.jsonl"), str(out), "--keep", "id"]) == 0
    assert pq.read_table(out).column("id").to_pylist() == ["1", None]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.parquet"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.soak
def test_the_number_of_workers_does_not_change_the_result(
    place: Path, tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from tests.helpers.evaluations import Joined

    monkeypatch.setattr(embed_file, "EMBEDDED", 7)
    monkeypatch.setattr("tailor.onray.sharing.clusters.BackgroundStart", Joined(cluster))
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    options = ("--keep", "text", "--key-values")
    run(place, tmp_path / "two.parquet", "--workers", "2", *options)
    monkeypatch.delenv("RAY_ADDRESS")
    torch.set_num_threads(1)
    run(place, tmp_path / "one.parquet", *options)
    assert np.array_equal(vectors(tmp_path / "two.parquet"), vectors(tmp_path / "one.parquet"))
    two, one = (key_values(tmp_path / f"{name}.parquet.key-values") for name in ("two", "one"))
    assert two.keys() == one.keys()
    assert {int(name.split(".")[0]) for name in two} == set(range(1, 41))
    assert all(torch.equal(two[name], one[name]) for name in two)
    assert not torch.equal(two["1.keys"][..., :1, :], two["2.keys"][..., :1, :]), "the control: rows differ"


@pytest.mark.parametrize(
    ("rows", "options", "text"),
    [
        (
            [{"text": "a"}, {"txt": "b"}],
            [],
            "in.jsonl:2: missing key `text`\n  hint: did you mean txt?",
        ),
        (
            [{"text": "a"}, {"body": "b"}],
            [],
            "in.jsonl:2: missing key `text`\n  hint: give the text column with --column",
        ),
        (
            [{"_id": "1", "text": "a"}],
            ["--keep", "id"],
            "input in.jsonl: --keep: no row has the column `id`; the columns are _id, text\n  hint: did you mean _id?",
        ),
        (
            [{"Title": "x", "text": "a"}, {"text": "b"}],
            ["--column", "titel", "--column", "text"],
            "input in.jsonl: --column: no row has the column `titel`; the columns are Title, text\n  hint: did you mean Title?",
        ),
        (
            [{"text": "a"}],
            ["--keep", "nope"],
            "input in.jsonl: --keep: no row has the column `nope`; the columns are text\n  hint: name one of these columns",
        ),
        (
            [{"text": "a"}, {"text": " "}],
            [],
            "in.jsonl:2: no text to embed\n  hint: remove the row",
        ),
        ([{"text": 3}], [], "in.jsonl:1: `text` must be text"),
        (
            [{"text": "a", "id": 1}, {"text": "b", "id": "x"}],
            ["--keep", "id"],
            "--keep id: the column has values of different types",
        ),
        (
            [{"text": "a"}],
            ["--keep", "row"],
            "--keep: row and embedding are columns that tailor writes, so input columns cannot have these names",
        ),
        (
            [{"text": "a"}],
            ["--dimension", "99"],
            "dimension: 99 is larger than the 16 dimensions of the embeddings of PLACE/model",
        ),
    ],
)
def test_errors(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]],
    options: list[str],
    text: str,
) -> None:
    run(place, tmp_path / "out.parquet", *options, source=write_jsonl(tmp_path / "in.jsonl", rows), code=2)
    printed = capsys.readouterr().err.replace(f"{tmp_path}/", "").replace(str(place), "PLACE")
    assert f"tailor: {text}" in printed
    assert not (tmp_path / "out.parquet").exists()


def test_models_and_outputs_that_cannot_be_used(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tiny_llama(tmp_path / "plain")
    capsys.readouterr()
    assert main(["embed", str(plain), str(place / "rows.jsonl"), str(tmp_path / "out.parquet")]) == 2
    assert capsys.readouterr().err == (
        f"tailor: {plain} is not an embedding model: it has no embedding.json\n"
        "  hint: give a run that was trained with method gritlm\n"
    )
    run(place, tmp_path / "out.csv", code=2)
    assert capsys.readouterr().err == (
        f"tailor: {tmp_path}/out.csv is not the name of a Parquet file\n  hint: give the output a name that ends in .parquet\n"
    )
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"text": ["a"]}), other)
    run(place, other, code=2)
    assert capsys.readouterr().err == (
        f"tailor: {other} already exists, and was not written by `tailor embed`\n"
        "  hint: choose a file that does not exist yet\n"
    )
