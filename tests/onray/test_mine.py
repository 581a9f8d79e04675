"""`tailor mine`: negatives are hard and not false, the same for any number of workers and after a kill, and rows train as they are."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tailor.artifacts.load_embedder import load_embedder
from tailor.cli.main import main
from tailor.encode.formats import formats_of, recognize
from tailor.encode.prepare import prepare
from tailor.encode.similarity.words import content
from tailor.evaluate import batches
from tailor.onray.cluster import Cluster
from tailor.spec.data import RELEVANCE, Data
from tailor.spec.methods.gritlm import Gritlm
from tailor.spec.model import Model
from tests.helpers.collections import write_jsonl
from tests.helpers.synonyms import MEANINGS, OTHERS, trained_embedder

FALSE = "physician repaired lamp"
"""It means what the positive passage of row 7 means: the two have the same embedding."""
ROWS: list[dict[str, Any]] = [
    {"id": 7, "query": "physician mended", "pos": ["doctor repaired lamp"], "made": {"by": "me"}},
    {"id": 8, "query": "Physician mended!", "pos": ["doctor mended lamp"], "neg": ["sea wind harbour"]},
    {"id": 9, "query": "wool linen", "pos": ["wool linen cloth", "linen cloth"]},
]
CORPUS = [
    FALSE,
    "doctor repaired lamp",
    "Doctor repaired, lamp.",
    "doctor mended lamp",
    "physician mended",
    "physician lamp road bread",
    "repaired cloth table",
    "wool bread cloth",
    "linen sea",
    "sea wind harbour",
    "bread road",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    trained_embedder(folder / "model")
    write_jsonl(folder / "rows.jsonl", ROWS)
    write_jsonl(folder / "corpus.jsonl", [{"text": text, "_id": at} for at, text in enumerate(CORPUS)])
    return folder


def mine(
    place: Path,
    to: Path,
    *options: str,
    retriever: str = "",
    rows: str = "rows.jsonl",
    corpus: str = "corpus.jsonl",
) -> list[dict[str, Any]]:
    words = [retriever or str(place / "model"), str(place / rows), str(to), *options]
    assert main(["mine", *words, *(["--corpus", str(place / corpus)] if corpus else [])]) == 0
    return [json.loads(line) for line in to.read_text().splitlines()]


def test_negatives_are_the_nearest_passages_below_the_positive(place: Path, tmp_path: Path) -> None:
    """The planted false negative has the score of the positive. Without a margin it is the first one: the control."""
    first, second, third = mine(place, tmp_path / "out.jsonl", "--negatives", "3")
    assert [row["id"] for row in (first, second, third)] == [7, 8, 9]
    assert first["made"] == {"by": "me"}
    assert first["query"] == "physician mended"
    assert first["pos"] == ["doctor repaired lamp"]
    model = load_embedder(str(place / "model"))
    query, positive = model.encode([first["query"], first["pos"][0]])
    forbidden = {content(text) for text in ("physician mended", "doctor repaired lamp", "doctor mended lamp")}
    allowed = {
        text: float(model.encode([text])[0] @ query) for text in CORPUS if content(text) not in forbidden
    }
    below = [text for text, score in allowed.items() if score < 0.95 * float(positive @ query)]
    assert first["neg"] == sorted(below, key=lambda text: -allowed[text])[:3]
    assert FALSE in allowed
    assert FALSE not in first["neg"]
    for margin in (["--no-margin"], ["--absolute-margin", "0.01", "--range-max", "2"]):
        rows = mine(place, tmp_path / f"{len(margin)}.jsonl", "--negatives", "3", *margin)
        assert (rows[0]["neg"][0] == FALSE) == (margin == ["--no-margin"])
    skipped = mine(place, tmp_path / "skipped.jsonl", "--negatives", "3", "--range-min", "1")
    assert skipped[0]["neg"][:2] == first["neg"][1:]


@pytest.mark.parametrize("retriever", ["", "bm25", "random"])
def test_no_known_positive_becomes_a_negative(place: Path, tmp_path: Path, retriever: str) -> None:
    """Neither one with another case and punctuation, nor that of an equal query, nor the query itself. Without a margin."""
    options = ["--no-margin"] if not retriever else []
    found = mine(place, tmp_path / "out.jsonl", "--negatives", "30", *options, retriever=retriever)
    words = [{content(text) for text in row["neg"]} for row in found]
    known = {content(text) for text in ("physician mended", "doctor repaired lamp", "doctor mended lamp")}
    assert not words[0] & known
    assert not words[1] & known
    assert words[2].isdisjoint({content(text) for text in ("wool linen", *ROWS[2]["pos"])})
    assert all(len(own) == len(row["neg"]) for own, row in zip(words, found, strict=True)), (
        "no negative twice"
    )
    if retriever == "bm25":  # a passage that shares no word is not found
        assert set(found[2]["neg"]) == {"wool bread cloth", "linen sea"}
        assert set(found[0]["neg"]) == {FALSE, "physician lamp road bread"}
    else:  # the control: everything else is chosen
        assert [len(row["neg"]) for row in found] == [7, 7, 10]


def test_bm25_takes_a_margin_too(place: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"query": "wool linen", "pos": ["wool linen bread road sea wind"]}])
    write_jsonl(
        tmp_path / "corpus.jsonl", [{"text": "wool linen bread"}, {"text": "linen sea"}, {"text": "road"}]
    )
    (free,) = mine(tmp_path, tmp_path / "free.jsonl", retriever="bm25")
    assert free["neg"] == ["wool linen bread", "linen sea"]
    (near,) = mine(tmp_path, tmp_path / "near.jsonl", "--relative-margin", "0.05", retriever="bm25")
    assert near["neg"] == ["linen sea"]


def test_random_negatives_depend_on_the_seed_and_the_row_only(place: Path, tmp_path: Path) -> None:
    options = ["--negatives", "2"]
    first = mine(place, tmp_path / "a.jsonl", *options, retriever="random")
    again = mine(place, tmp_path / "b.jsonl", *options, retriever="random")
    other = mine(place, tmp_path / "c.jsonl", *options, "--seed", "1", retriever="random")
    assert first == again
    assert first != other
    assert first[0]["neg"] != first[1]["neg"]
    sampled = mine(place, tmp_path / "d.jsonl", *options, "--sampling", "random", "--range-max", "5")
    top = mine(place, tmp_path / "e.jsonl", "--negatives", "5")
    assert all(set(one["neg"]) <= set(all_["neg"]) for one, all_ in zip(sampled, top, strict=True))
    assert [row["neg"] for row in sampled] != [row["neg"][:2] for row in top]


FORMATS: dict[str, list[dict[str, Any]]] = {
    "gritlm": [
        {"query": ["Find it", "wool linen"], "pos": [["", "wool cloth"]], "neg": [["", "sea"]], "n": 1}
    ],
    "flagembedding": [
        {
            "query": "wool",
            "pos": ["wool cloth"],
            "neg": ["sea"],
            "prompt": "Find it",
            "n": 1,
            "pos_scores": [1.0],
        }
    ],
    "tevatron": [{"query": "wool", "positive_passages": [{"title": "wool", "text": "cloth"}], "n": 1}],
    "sentence_transformers": [{"anchor": "wool", "positive": "wool cloth", "negative_1": "sea", "n": 1}],
}


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_each_format_are_written_in_one_that_trains(place: Path, tmp_path: Path, name: str) -> None:
    """And mining again reads what it wrote."""
    write_jsonl(tmp_path / "rows.jsonl", FORMATS[name] * 2)
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in CORPUS])
    options = ["--negatives", "2", "--no-margin"]
    words = [str(place / "model"), str(tmp_path / "rows.jsonl"), "--corpus", str(tmp_path / "corpus.jsonl")]
    assert main(["mine", *words, str(tmp_path / "one.jsonl"), *options]) == 0
    rows = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert all(set(row) == {"query", "pos", "neg", "n"} for row in rows)
    asks = name in ("gritlm", "flagembedding")
    assert recognize(rows, {}, formats_of((RELEVANCE,))) == ["gritlm" if asks else "flagembedding"]
    text = rows[0]["pos"][0]
    assert (text[1] if asks else text) == "wool cloth"
    assert rows[0]["query"] == (
        ["Find it", FORMATS[name][0]["query"][-1] if name == "gritlm" else "wool"] if asks else "wool"
    )
    assert len(rows[0]["neg"]) == 2
    data = Data.model_validate({"train": [{"path": str(tmp_path / "one.jsonl")}], "template": "gritlm"})
    method = Gritlm(name="gritlm", mode="embedding", group_size=3)
    report = prepare(
        data, Model(path=str(place / "model")), method, str(tmp_path / "tokens")
    ).tokens.manifest["report"]
    assert report["sources"][0]["kept"] == len(rows)
    assert set(report["sources"][0]["unused"]) == {"n"}
    assert not report["sources"][0]["changes"], "each row has negatives of its own"
    words[1] = str(tmp_path / "one.jsonl")
    assert main(["mine", *words, str(tmp_path / "two.jsonl"), *options]) == 0
    assert (tmp_path / "two.jsonl").read_text() == (tmp_path / "one.jsonl").read_text()


def test_plain_rows_and_rows_with_instructions_may_be_mixed(place: Path, tmp_path: Path) -> None:
    rows = [*FORMATS["flagembedding"], *FORMATS["gritlm"], {"query": "lamp", "pos": ["lamp road"]}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    for retriever in ("bm25", "random"):
        to = tmp_path / f"{retriever}.jsonl"
        found = mine(place, to, "--negatives", "1", retriever=retriever, rows=str(tmp_path / "rows.jsonl"))
        assert [row["query"] for row in found] == [
            ["Find it", "wool"],
            ["Find it", "wool linen"],
            ["", "lamp"],
        ]
        assert [row["pos"][0][1] for row in found] == ["wool cloth", "wool cloth", "lamp road"]
        assert recognize(found, {}, formats_of((RELEVANCE,))) == ["gritlm"]


def test_odd_rows_end_only_themselves(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = ['{"query": "wool"', '{"query": " ", "pos": ["a"]}', '{"query": "a\\ud800", "pos": ["b"]}', "3"]
    good = [json.dumps({**ROWS[2], "note": "\ud800"}), json.dumps(ROWS[2])]
    (tmp_path / "rows.jsonl").write_text("\n".join([good[0], *odd, good[1]]))
    passages = ['{"text": ""}', "[]", '{"text": 3}', '{"text": "x\\udfff"}', '{"txt": "a"}']
    (tmp_path / "corpus.jsonl").write_text(
        "\n".join([*passages, *map(json.dumps, [{"text": one} for one in CORPUS])])
    )
    words = [str(place / "model"), str(tmp_path / "rows.jsonl"), str(tmp_path / "out.jsonl")]
    assert main(["mine", *words, "--corpus", str(tmp_path / "corpus.jsonl"), "--json"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert (result["rows"], result["unreadable"], result["unreadable_passages"]) == (2, 4, 5)
    assert f"left out 4 rows that cannot be read, such as {tmp_path}/rows.jsonl:2: " in shown.err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows[0]["note"] == "\ud800"
    assert rows[0]["neg"] == rows[1]["neg"] != []


def test_tables_keep_their_values(place: Path, tmp_path: Path) -> None:
    table = pa.table(
        {
            "query": ["wool"],
            "pos": [["wool cloth"]],
            "at": pa.array([86_400], pa.timestamp("s")),
            "x": [float("nan")],
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": "linen sea"}])
    (row,) = mine(tmp_path, tmp_path / "out.jsonl", retriever="random", rows="rows.parquet")
    assert row == {
        "query": "wool",
        "pos": ["wool cloth"],
        "neg": ["linen sea"],
        "at": "1970-01-02T00:00:00",
        "x": None,
    }


def test_without_a_corpus_the_passages_of_the_rows_are_used(place: Path, tmp_path: Path) -> None:
    rows = mine(place, tmp_path / "out.jsonl", "--no-margin", corpus="")
    assert set(rows[0]["neg"]) == {"sea wind harbour", *ROWS[2]["pos"]}


def test_instructions_of_the_corpus(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"query": ["Find it", "wool"], "pos": [["Read it", "wool cloth"]]}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": "linen sea"}])
    (row,) = mine(tmp_path, tmp_path / "out.jsonl", retriever="random")
    assert row["neg"] == [["Read it", "linen sea"]], (
        "as the positive, or the instruction would tell them apart"
    )
    (row,) = mine(tmp_path, tmp_path / "two.jsonl", "--corpus-instruction", "", retriever="random")
    assert row["neg"] == [["", "linen sea"]]
    write_jsonl(tmp_path / "rows.jsonl", [*rows, {"query": ["Find it", "wool"], "pos": [["", "wool cloth"]]}])
    words = [
        "random",
        str(tmp_path / "rows.jsonl"),
        str(tmp_path / "x.jsonl"),
        "--corpus",
        str(tmp_path / "corpus.jsonl"),
    ]
    assert main(["mine", *words]) == 2
    assert "hint: name it with --corpus-instruction" in capsys.readouterr().err


def test_a_killed_command_resumes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batches, "EMBEDDED", 3)
    expected = mine(place, tmp_path / "whole.jsonl")
    real, done = batches.Worker.__call__, []

    def dies(self: batches.Worker, batch: batches.EvaluationBatch) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(batch.inputs)
        return real(self, batch)

    def counts(self: batches.Worker, batch: batches.EvaluationBatch) -> Any:
        done.append(batch.inputs)
        return real(self, batch)

    words = [str(place / "model"), str(place / "rows.jsonl"), str(tmp_path / "out.jsonl")]
    words += ["--corpus", str(place / "corpus.jsonl")]
    monkeypatch.setattr(batches.Worker, "__call__", dies)
    assert main(["mine", *words]) == 130
    assert not (tmp_path / "out.jsonl").exists()
    monkeypatch.setattr(batches.Worker, "__call__", counts)
    assert mine(place, tmp_path / "out.jsonl") == expected
    assert "resuming: 6 of " in capsys.readouterr().out
    assert len(done) == len(set(done)), "no text was embedded twice"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "whole.jsonl"]


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.ray
def test_the_number_of_workers_does_not_change_the_result(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster
) -> None:
    import ray

    from tests.helpers.evaluations import Joined

    monkeypatch.setattr(batches, "EMBEDDED", 3)
    monkeypatch.setattr("tailor.onray.sharing.clusters.BackgroundStart", Joined(cluster))
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    words = [*OTHERS, *(word for pair in MEANINGS for word in pair)]
    texts = [" ".join(generator.choice(words, generator.integers(2, 9))) for _ in range(60)]
    write_jsonl(
        tmp_path / "rows.jsonl",
        [{"query": one, "pos": [two]} for one, two in itertools.pairwise(texts)],
    )
    words = [str(place / "model"), str(tmp_path / "rows.jsonl")]
    assert main(["mine", *words, str(tmp_path / "one.jsonl")]) == 0
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    assert main(["mine", *words, str(tmp_path / "two.jsonl"), "--workers", "2"]) == 0
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


HINT = "hint: use rows of one of the formats gritlm, flagembedding, tevatron, sentence_transformers"
"""The command has no options that name a format or columns."""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bm25", "--no-margin"], "--no-margin has no effect with bm25"),
        (["random", "--range-max", "3"], "--range-max has no effect with random"),
        (["bm25", "--column", "a"], "--column has no effect without --corpus"),
        (["bm25", "--range-min", "100"], "it must be below --range-max, which is 100"),
        (["model", "--no-margin", "--relative-margin", "0.1"], "a margin is given too"),
        (
            ["bm25", "--corpus", "corpus.jsonl", "--column", "titel", "--column", "text"],
            "no row has the column `titel`",
        ),
        (["bm25", "--corpus", "corpus.jsonl", "--column", "titel"], "no row has the column `titel`"),
        (["nowhere"], "nowhere"),
        (["bm25", "rows=conversations.jsonl"], "have no passages"),
        (["bm25", "rows=odd.jsonl"], "finds no format that fits"),
        (["bm25", "rows=odd.jsonl"], HINT),
        (
            ["bm25", "rows=two.jsonl"],
            "the rows fit flagembedding and sentence_transformers; two.jsonl:2 fits",
        ),
        (["bm25", "rows=two.jsonl"], HINT),
        (["bm25", "rows=conversations.jsonl"], HINT),
        (["bm25", "to=out.parquet"], "is not the name of a JSONL file"),
        (["bm25", "to=corpus.jsonl"], "already exists"),
        (["bm25", "rows=named.jsonl"], "its column `query` would be overwritten"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_errors(
    words: list[str],
    message: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    write_jsonl(place / "conversations.jsonl", [{"messages": [{"role": "user", "content": "a"}]}])
    write_jsonl(place / "odd.jsonl", [{"a": "b"}])
    write_jsonl(place / "two.jsonl", [{"query": "a", "pos": ["b"]}, {"anchor": "a", "positive": "b"}])
    write_jsonl(place / "named.jsonl", [{"anchor": "a", "positive": "b", "query": "c"}])
    given = dict(word.split("=") for word in words if "=" in word)
    retriever, *options = (word for word in words if "=" not in word)
    line = ["mine", retriever, given.get("rows", "rows.jsonl"), given.get("to", "new.jsonl"), *options]
    assert main(line) == 2
    assert message in capsys.readouterr().err
