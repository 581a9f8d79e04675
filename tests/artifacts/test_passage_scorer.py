"""Passages chosen by an embedding model: found without a common word, and with scores that do not depend on machine or batch."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch

from tailor.artifacts import load_embedder, passage_scorer
from tailor.artifacts.passage_scorer import Dense, scorer_of
from tailor.encode import bm25
from tailor.encode.examples import Encoder
from tailor.encode.prepare import prepare_all
from tailor.encode.records import Completion, RowError
from tailor.encode.report import notes
from tailor.encode.tokenizer import load_tokenizer
from tailor.encode.truncation import Score
from tailor.errors import ModelError
from tailor.export.forms import sentence_transformers
from tailor.spec.data import Data, Retrieve
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model
from tests.helpers.adapters import random_adapter
from tests.helpers.collections import embedding_model, passages
from tests.helpers.models import byte_tokenizer, tiny_llama
from tests.helpers.synonyms import ASKED, DEEP, FILL, published_embedder, trained_embedder

KINDS = ("trained", "published")
ASK = "Find the passage:"
TEXTS = [passage["text"] for passage in passages()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embedders of both kinds that know synonyms, and of both kinds whose embeddings depend on all tokens."""
    folder = tmp_path_factory.mktemp("dense")
    trained_embedder(folder / "trained")
    published_embedder(folder / "published")
    embedding_model(folder / "random")
    published_embedder(folder / "attends", attends=True)
    return folder


def chosen(folder: Path, score: Any) -> str:
    """The passages kept of a prompt that has the answer in its middle."""
    made = Encoder(
        load_tokenizer(str(byte_tokenizer(folder))),
        None,
        train_on="assistant",
        max_length=512,
        on_long="retrieve",
        retrieve=Retrieve(passage=72, question=len(ASKED)),
        scorer=score,
    )
    (outcome,) = made([Completion(FILL * 10 + DEEP * 4 + FILL * 10 + ASKED, " yes")])
    assert not isinstance(outcome, RowError)
    return made.tokenizer.decode(outcome.examples[0].input_ids.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_passages_without_a_common_word_are_found(place: Path, tmp_path: Path, kind: str) -> None:
    text = chosen(tmp_path, Dense(str(place / kind), None))
    assert text.count("physician") >= 3
    assert text.startswith(FILL[:72]), "the first passage stays"
    assert text.endswith(f"{ASKED} yes</s>")
    assert len(text) <= 512 + 3


def test_control_bm25_does_not_find_it(tmp_path: Path) -> None:
    assert not set(bm25.words(DEEP)) & set(bm25.words(ASKED))
    assert "physician" not in chosen(tmp_path, None)


@pytest.mark.parametrize("kind", ["random", "attends"])
def test_a_score_does_not_depend_on_other_texts(place: Path, kind: str) -> None:
    """Equal to the last bit before rounding, in any order, in another process and with other thread counts."""
    texts = TEXTS if kind == "random" else [FILL[at : at + 40] for at in range(0, 60, 7)] * 2

    def scores(texts: list[str], threads: int = 1) -> list[float]:
        scorer = pickle.loads(pickle.dumps(Dense(str(place / kind), None)))
        torch.set_num_threads(threads)
        found: list[float] = scorer("wool coat and a lamp", texts)
        assert torch.get_num_threads() == threads, "it gives the threads back"
        torch.set_num_threads(1)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passage_scorer, "DIGITS", 17)
        together = scores(texts)
        assert len(set(together)) > 5
        assert scores(texts[::-1])[::-1] == together
        assert [scores([text])[0] for text in texts[:3]] == together[:3]
        assert scores(texts, threads=2) == together


def test_control_batching_changes_the_numbers(place: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = [FILL[at : at + 40] for at in range(0, 60, 7)]
    model = SentenceTransformer(str(place / "attends"), device="cpu")
    alone = np.stack([model.encode([text])[0] for text in texts])
    together = model.encode(texts, batch_size=len(texts))
    assert 0 < np.abs(together - alone).max() < 1e-5


def test_near_ties_go_to_the_earlier_passage(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same words in another order have the same mean, but for rounding."""
    words = FILL.split()
    texts = [" ".join(words[at:] + words[:at]) for at in range(len(words))]
    assert len(set(Dense(str(place / "trained"), None)("sea wind", texts))) == 1
    monkeypatch.setattr(passage_scorer, "DIGITS", 17)
    raw = Dense(str(place / "trained"), None)("sea wind", texts)
    assert len(set(raw)) > 1, "the control: rounding is needed"
    assert max(raw) - min(raw) < 1e-6


def test_scores_are_cosines(place: Path) -> None:
    loaded = load_embedder.load_embedder(str(place / "random"))
    expected = loaded.encode(TEXTS) @ loaded.encode(["wool coat"], ASK)[0]
    assert Dense(str(place / "random"), ASK)("wool coat", TEXTS) == pytest.approx(expected.tolist(), abs=1e-4)
    plain = Dense(str(place / "random"), None)("wool coat", TEXTS)
    assert np.abs(np.array(plain) - expected).max() > 1e-3, "the control: the instruction is read"


def test_a_sentence_transformers_model_uses_its_own_prompts(place: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    declared = {"query": "lamp: ", "document": "road: "}
    published_embedder(tmp_path / "prompted", prompts=declared)
    plain = SentenceTransformer(str(place / "published"), device="cpu")
    texts = [FILL[at : at + 40] for at in range(0, 60, 7)]
    vectors = plain.encode([declared["query"] + "sea", *(declared["document"] + one for one in texts)])
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = Dense(str(tmp_path / "prompted"), None)("sea", texts)
    assert found == pytest.approx((vectors[1:] @ vectors[0]).tolist(), abs=1e-4)
    assert found != Dense(str(place / "published"), None)("sea", texts), "the control: without prompts"
    with pytest.raises(ModelError, match=r"^data.retrieve.query_instruction has no effect: .*/prompted is a"):
        Dense(str(tmp_path / "prompted"), ASK)


def test_an_export_scores_like_its_run(place: Path, tmp_path: Path) -> None:
    sentence_transformers.write(shutil.copytree(place / "random", tmp_path / "out"), query_instruction=ASK)
    found = Dense(str(tmp_path / "out"), None)("wool coat", TEXTS)
    assert found == pytest.approx(Dense(str(place / "random"), ASK)("wool coat", TEXTS), abs=1.1e-4)


def test_blank_texts_come_last(place: Path) -> None:
    for kind in KINDS:
        scorer: Score = Dense(str(place / kind), None)
        assert scorer("sea", ["lamp", " \n", "sea"])[1] == -1
        assert scorer(" \n", ["lamp", "sea"]) == [0, 0]


def test_the_identity_depends_only_on_files(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "random", tmp_path / "moved")
    first = Dense(str(place / "random"), None).identity
    assert Dense(str(tmp_path / "moved"), None).identity == first
    others = [Dense(str(place / "random"), ASK).identity]
    embedding_model(tmp_path / "seed", seed=1)
    embedding_model(tmp_path / "pooled", pooling="lasttoken")
    others += [Dense(str(tmp_path / name), None).identity for name in ("seed", "pooled")]
    base = tiny_llama(tmp_path / "base")
    random_adapter(tmp_path / "adapter", base, known_base=False)
    shutil.copy(place / "random" / "embedding.json", tmp_path / "adapter")
    others.append(Dense(str(tmp_path / "adapter"), None).identity)
    tiny_llama(base, seed=5)
    others.append(Dense(str(tmp_path / "adapter"), None).identity)
    assert len({first, *others}) == 6, "an adapter's base counts too"


ROWS = 6


def prepared(place: Path, embedder: Path | None, store: Path, **settings: Any) -> Any:
    """Rows whose needle BM25 cannot find, chosen by an embedder."""
    rows = place / "rows.jsonl"
    lines = [
        {"prompt": f"{FILL * (4 + at)}{DEEP * 2}{FILL * 6}{ASKED}", "response": " yes"} for at in range(ROWS)
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    named = {} if embedder is None else {"embedder": str(embedder)}
    data = Data(
        train=[{"path": str(rows)}],
        max_length=512,
        on_long="retrieve",
        retrieve={"passage": 72, "question": len(ASKED), **named, **settings},
    )
    model = Model(path=str(byte_tokenizer(place / "bytes")))
    return prepare_all(data, model, Sft(name="sft"), str(store), scorer=scorer_of(data))


def test_another_model_gives_another_store(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    real = load_embedder.load_embedder
    monkeypatch.setattr(
        load_embedder, "load_embedder", lambda *args, **more: loads.append(1) or real(*args, **more)
    )
    first = prepared(place, place / "trained", tmp_path / "store")
    assert len(loads) == 1, "once for all rows"
    shutil.copytree(place / "trained", tmp_path / "moved")
    again = prepared(place, tmp_path / "moved", tmp_path / "store")
    assert (first.reused, again.reused, again.tokens.url) == (False, True, first.tokens.url)
    assert len(loads) == 1, "not loaded for a store that is there"
    trained_embedder(tmp_path / "moved", seed=3)
    other = prepared(place, tmp_path / "moved", tmp_path / "store")
    asked = prepared(place, place / "trained", tmp_path / "store", query_instruction=ASK)
    words = prepared(place, None, tmp_path / "store")
    stores = {one.tokens.url for one in (first, other, asked, words)}
    assert (len(stores), other.reused, asked.reused, words.reused) == (4, False, False, False)
    trains = {one.tokens.manifest["train_fingerprint"] for one in (first, other, asked, words)}
    assert len(trains) == 4
    report = first.tokens.manifest["report"]
    assert (report["sources"][0]["retrieved"], report["sources"][0]["passages_partly_read"]) == (ROWS, 0)
    assert notes(report, None) == []


def test_truncated_texts_are_reported(place: Path, tmp_path: Path) -> None:
    short = trained_embedder(tmp_path / "short", max_length=10)
    report = prepared(place, short, tmp_path / "store").tokens.manifest["report"]
    count = report["sources"][0]["passages_partly_read"]
    assert count > ROWS
    (told,) = notes(report, None)
    assert told.startswith(
        f"{count} passages and questions are longer than the embedder's maximum length, so it scored only"
    )
    assert told.endswith("lower data.retrieve.passage or data.retrieve.question")
    model = Dense(str(place / "published"), None)
    model("sea", ["sea " * 62, "sea " * 90])
    assert model.truncated == 1


def test_a_model_of_the_hub(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **more: asked.append((name, more["allow_patterns"])) or str(place / name.split("/")[1]),
    )
    for name in ("published", "trained"):
        there, here = Dense(f"org/{name}", None), Dense(str(place / name), None)
        assert there.identity == here.identity
        assert there("sea", ["lamp", "sea wind"]) == here("sea", ["lamp", "sea wind"])
    assert {name for name, _ in asked} == {"org/published", "org/trained"}
    assert not any("*.py" in patterns or "*.bin" in patterns for _, patterns in asked)


def test_models_that_cannot_embed_are_rejected(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny_llama(tmp_path / "plain")
    with pytest.raises(ModelError) as caught:
        Dense(str(plain), None)
    assert caught.value.message == (
        f"data.retrieve.embedder: {plain} is not an embedding model: it has neither embedding.json (runs of gritlm) "
        "nor modules.json (sentence-transformers)"
    )
    with pytest.raises(ModelError, match=r"^data.retrieve.embedder: .*/none does not exist"):
        Dense(str(tmp_path / "none"), None)

    moved = shutil.copytree(place / "random", tmp_path / "changed")
    scorer = Dense(str(moved), None)
    embedding_model(moved, seed=9)
    with pytest.raises(
        ModelError, match=r"^data.retrieve.embedder: .*/changed has different files on .* than on the machine"
    ):
        scorer("sea", ["sea"])

    own = shutil.copytree(place / "published", tmp_path / "own")
    modules = json.loads((own / "modules.json").read_text())
    modules[0]["type"] = "os.system"
    (own / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match=r"has the custom module os\.system, whose code tailor does not run"):
        Dense(str(own), None)("sea", ["sea"])

    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModelError) as caught:
        Dense(str(place / "published"), None)
    assert (
        "is a sentence-transformers model, but the package sentence-transformers is not installed"
        in caught.value.message
    )
    assert "pip install 'tailor[sentence-transformers]'" in str(caught.value.hint)
