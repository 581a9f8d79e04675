"""Rows for an encoder: the tokens of sentence-transformers, truncation that keeps [SEP], and texts that are recognized as equal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailor.data.facts import of_split
from tailor.data.grit_batches import GritBatch
from tailor.encode.formats import formats_of, recognize
from tailor.encode.prepare import Prepared, prepare_all
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import DataError, TailorError
from tailor.evaluate.mining.choice import Choice
from tailor.models.embedding.settings import Embedding
from tailor.plan.batches import BatchSpec
from tailor.spec.data import RELEVANCE, Data
from tailor.spec.methods.gritlm import Gritlm
from tailor.spec.model import Model
from tests.helpers.encoders import LONGEST, POSITIONS, tiny_encoder

ROW = {
    "query": ["query: ", "the sea"],
    "pos": [["passage: ", "wide"]],
    "neg": [["passage: ", "the sea"], "dry"],
}


def prepared(
    folder: Path, rows: list[dict[str, Any]], kind: str = "bert", method: Any = None, **data: Any
) -> Prepared:
    if not (folder / kind).exists():
        tiny_encoder(folder / kind, kind)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"train": [{"path": str(folder / "rows.jsonl")}], "max_length": 64, **data}
    given = Gritlm.model_validate({"name": "gritlm", "mode": "embedding", **(method or {})})
    return prepare_all(
        Data.model_validate(values), Model(path=str(folder / kind)), given, str(folder / "tokens")
    )


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "modernbert"])
def test_a_text_has_the_tokens_of_transformers(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    split = prepared(tmp_path, [ROW], kind).tokens.split("train")
    theirs = AutoTokenizer.from_pretrained(tmp_path / kind)
    texts = ["query: the sea", "passage: wide", "passage: the sea", "dry"]
    for number, text in enumerate(texts):
        example = split.example(number)
        assert example.input_ids.tolist() == theirs(text)["input_ids"]
        pooled = sorted(at for start, stop in example.spans for at in range(start, stop))
        assert pooled == list(range(len(example.input_ids))), "everything is pooled, each token once"
    own = [split.example(number) for number in (0, 2)]
    bodies = [one.input_ids[slice(*one.spans[0])].tolist() for one in own]
    assert bodies[0] == bodies[1], "the text alone is the same after another prompt"
    letters = re.sub(r"[^a-z]", "", load_tokenizer(str(tmp_path / kind)).decode(bodies[0]))
    assert letters == "thesea"


def test_truncation_keeps_the_last_special_token(tmp_path: Path) -> None:
    long = {**ROW, "pos": [["passage: ", "wide " * 40]]}
    found = prepared(tmp_path, [long], method={"max_passage_length": 20}, on_long="truncate")
    split = found.tokens.split("train")
    whole = prepared(tmp_path, [long], max_length=512).tokens.split("train").example(1)
    short = split.example(1)
    assert len(short.input_ids) == 20
    assert short.input_ids[-1] == whole.input_ids[-1] == load_tokenizer(str(tmp_path / "bert")).suffix[0]
    assert np.array_equal(short.input_ids[:-1], whole.input_ids[:19])
    assert sorted(map(tuple, short.spans.tolist()))[-1] == (19, 20)
    none = prepared(
        tmp_path,
        [ROW, {**ROW, "query": ["a long prompt before the text ", "x"]}],
        method={"max_query_length": 20},
        on_long="truncate",
        budget={"dropped": 1.0},
    )
    assert len(none.tokens.split("train")) == 4, "a prompt that leaves no room costs its row only"


def test_a_passage_with_the_querys_text_is_no_negative(tmp_path: Path) -> None:
    rows = [ROW, {"query": ["query: ", "dry"], "pos": [["passage: ", "sand"]], "neg": [["passage: ", "x"]]}]
    split = prepared(tmp_path, rows).tokens.split("train")
    method = Gritlm.model_validate(
        {"name": "gritlm", "mode": "embedding", "embedding_batch_size": 2, "group_size": 3}
    )
    batches = of_split(split, BatchSpec(seed=0, max_length=64, pack=False, streams=method.streams))
    batch = batches.batch(0)
    assert isinstance(batch, GritBatch)
    assert len(batch.excluded) >= 2, "`the sea` of the first row's negatives, and `dry` for the second query"


def test_queries_of_a_retrieval_collection_are_kept_out_of_the_training_rows(tmp_path: Path) -> None:
    queries = [{"_id": "q1", "text": "where does the wide sea begin"}, {"_id": "q2", "text": "short one"}]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    asked = {**ROW, "query": ["query: ", "Where does the wide sea begin?"]}
    found = prepared(tmp_path, [ROW, asked], decontaminate=[{"path": str(tmp_path / "queries.jsonl")}])
    assert len(found.tokens.split("train")) == 4
    assert len(prepared(tmp_path, [ROW, asked]).tokens.split("train")) == 8, "the control"


def test_a_lone_surrogate_is_an_error_of_the_text(tmp_path: Path) -> None:
    """In all ways to tokenize: a DataError for commands, and a TypeError as of the package, which leaves out one row."""
    tokenizer = load_tokenizer(str(tiny_encoder(tmp_path, "bert")))
    assert [tokenizer.encode("a")] == [ids.tolist() for ids in tokenizer.encode_batch(["a"])], "the control"
    for encode in (tokenizer.encode_batch, tokenizer.encode_with_positions):
        for continues in (False, True):
            with pytest.raises(DataError, match="not valid Unicode"):
                encode(["fine", "a\ud800"], continues=continues)
    with pytest.raises(TypeError, match="not valid Unicode"):
        tokenizer.encode("a\udcff")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("1_Pooling/config.json", None, "is missing or damaged"),
        ("1_Pooling/config.json", "", "is damaged"),
        ("1_Pooling/config.json", '{"pooling_mode": 5}', "5 pooling"),
        ("modules.json", '[{"type": "x.Pooling", "path": "../1_Pooling"}]', "is missing or damaged"),
        ("sentence_bert_config.json", '{"max_seq_length": 100000}', ""),
        ("config_sentence_transformers.json", '{"prompts": {}, "default_prompt_name": ["a"]}', ""),
    ],
)
def test_odd_published_files(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    tiny_encoder(tmp_path, "bert")
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    if message:
        with pytest.raises(TailorError, match=message):
            Embedding.read(tmp_path, "m")
    else:
        settings, _ = Embedding.read(tmp_path, "m")
        assert settings.max_length == (POSITIONS if "max_seq_length" in str(content) else LONGEST)


def test_an_odd_row_does_not_decide_the_format() -> None:
    plain, pairs = {"query": "a", "pos": ["b"]}, {"query": "a", "pos": [["", "b"]]}
    for odd in (
        {"query": 5, "pos": ["x"]},
        {"query": "a", "pos": "x"},
        {"query": "a", "pos": [["i", "t", "x"]]},
    ):
        assert recognize([plain, odd], {}, formats_of((RELEVANCE,))) == ["flagembedding"]
        assert recognize([pairs, odd], {}, formats_of((RELEVANCE,))) == ["gritlm"]


def test_more_random_negatives_than_passages_are_all_of_them() -> None:
    found = Choice(count=10**12).at_random(5, np.array([2]), 0)
    assert sorted(found) == [0, 1, 3, 4]
