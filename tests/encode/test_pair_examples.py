"""Rows for a reranker: the tokens of transformers, truncation of the passage alone, and rows that are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailor.data.facts import of_split
from tailor.data.token_store import TokenStore
from tailor.encode.pair_examples import token_types
from tailor.encode.prepare import Prepared, prepare_all
from tailor.encode.unused import FILLED_NEGATIVES
from tailor.errors import DataError, ModelError
from tailor.methods import load_method
from tailor.models.collator import Collator
from tailor.plan.batches import BatchSpec
from tailor.spec.data import Data
from tailor.spec.methods.rerank import Rerank
from tailor.spec.model import Model
from tests.helpers.encoders import tiny_encoder

ROW = {"query": ["find:", "the sea"], "pos": ["wide sea"], "neg": ["dry", "a house of stone"]}


def prepared(folder: Path, rows: list[dict[str, Any]], kind: str = "bert", **data: Any) -> Prepared:
    if not (folder / kind).exists():
        tiny_encoder(folder / kind, kind)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"train": [{"path": str(folder / "rows.jsonl")}], "max_length": 64, **data}
    method = Rerank.model_validate({"name": "rerank"})
    return prepare_all(
        Data.model_validate(values), Model(path=str(folder / kind)), method, str(folder / "tokens")
    )


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "modernbert", "mpnet"])
def test_a_pair_has_the_tokens_of_transformers(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    split = prepared(tmp_path, [ROW], kind).tokens.split("train")
    theirs = AutoTokenizer.from_pretrained(tmp_path / kind)
    for number, passage in enumerate(["wide sea", "dry", "a house of stone"]):
        example = split.example(number)
        expected = theirs("find: the sea", passage, return_token_type_ids=True)
        assert example.input_ids.tolist() == expected["input_ids"]
        types = token_types(len(example.input_ids), example.spans)
        assert types.tolist() == expected["token_type_ids"]
    assert [bool(one) for one in split.is_positive] == [True, False, False]


def test_truncation_cuts_the_passage_and_keeps_what_follows_it(tmp_path: Path) -> None:
    long = {**ROW, "neg": ["a house of stone " * 9]}
    full = prepared(tmp_path, [long], max_length=512).tokens.split("train").example(1)
    cut = prepared(tmp_path, [long], max_length=40, on_long="truncate").tokens.split("train").example(1)
    assert len(cut.input_ids) == 40 < len(full.input_ids)
    assert cut.input_ids[:-1].tolist() == full.input_ids[:39].tolist()
    assert cut.input_ids[-1] == full.input_ids[-1], "[SEP]"
    assert token_types(40, cut.spans).tolist() == token_types(len(full.input_ids), full.spans)[:40].tolist()


def test_rows_that_are_left_out(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "neg": [" "]}, {**ROW, "query": ["find:", "the sea " * 20]}]
    report = prepared(tmp_path, rows, on_long="truncate", max_length=40).tokens.manifest["report"]["sources"][
        0
    ]
    lost = {**report["unreadable"], **report["dropped"]}
    assert report["kept"] == 1
    assert set(lost) == {"empty", "too_long"}
    assert "leaves no room" in json.dumps(lost["too_long"])


def test_a_tokenizer_without_pairs_is_refused(tmp_path: Path) -> None:
    tiny_encoder(tmp_path / "bert")
    file = tmp_path / "bert" / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": None}))
    with pytest.raises(ModelError, match="puts no token between the two texts"):
        prepared(tmp_path, [ROW])


TEXTS = ["the sea", "a house", "a stone", "wide", "grey", "dry sand " * 5]


def batches_of(tokens: TokenStore, ranked: int) -> Any:
    spec = BatchSpec(seed=0, max_length=64, pack=False, batch_size=2, ranked=ranked)
    return of_split(tokens.split("train"), spec)


def test_a_training_row_is_drawn_again_in_each_epoch(tmp_path: Path) -> None:
    row = {"query": "the sea", "pos": ["wide", "blue"], "neg": [f"dry {at}" for at in range(4)]}
    tokens = prepared(tmp_path, [row, {**row, "query": "a house"}, {**row, "query": "stone"}]).tokens
    batches, is_positive = batches_of(tokens, 3), tokens.split("train").is_positive
    rows = [[one for batch in batches.epoch(epoch) for one in batch] for epoch in range(6)]
    for epoch in rows:
        assert sorted(one[0] // 6 for one in epoch) == [0, 1, 2], "each query once"
        for one in epoch:
            assert [bool(is_positive[example]) for example in one] == [True, False, False]
            assert len(set(one)) == 3
            assert len({example // 6 for example in one}) == 1, "all of one query"
            assert batches.length(one) <= batches.longest_row()
    assert len({tuple(sorted(epoch)) for epoch in map(tuple, rows)}) > 1, "the draws differ"
    assert rows[0] == [one for batch in batches_of(tokens, 3).epoch(0) for one in batch]
    nothing = of_split(tokens.split("evaluation"), batches.spec)
    assert (nothing.rows(), nothing.longest_row(evaluation=True)) == ([], 0), "a run without evaluation rows"
    repeated = batches_of(tokens, 8).batch(0)[0]
    assert len(repeated) == 8
    assert len(set(repeated)) == 5, "one positive and the four negatives"
    assert all(len(one) == 6 for one in batches.rows()), "an evaluation has all passages"
    assert np.sum([len(one) for one in batches.rows()]) == 18


def test_a_row_without_negatives_gets_passages_of_other_rows(tmp_path: Path) -> None:
    """As pairs with its own query, with the tokens of transformers; never one that answers the query."""
    from transformers import AutoTokenizer

    rows = [
        {"query": "the sea", "pos": ["wide"], "neg": []},
        {"query": "a house", "pos": ["wide"], "neg": ["dry sand " * 5]},
        {"query": "a stone", "pos": ["grey"], "neg": []},
    ]
    tokens = prepared(tmp_path, rows, max_length=24, on_long="truncate").tokens
    changes = tokens.manifest["report"]["sources"][0]["changes"]
    assert changes[FILLED_NEGATIVES]["count"] == 2
    split, batches = tokens.split("train"), batches_of(tokens, 3)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "bert")
    method = load_method(Rerank.model_validate({"name": "rerank", "group_size": 3}))
    drawn: dict[str, set[str]] = {}
    chosen = [row for epoch in range(8) for batch in batches.epoch(epoch) for row in batch]
    for row in [*chosen, *batches.rows()]:
        batch = method.read(Collator(split, "rows", max_length=24), [row], slice(0, 1))
        assert batch.pairs is not None
        assert batch.is_positive.tolist() == [True, False, False][: len(row)]
        assert batches.length(row) <= batches.longest_row()
        for ids, types, mask in zip(
            batch.input_ids, batch.pairs.token_types, batch.token_document >= 0, strict=True
        ):
            query, passage = theirs.decode(ids[mask][1:-1]).replace(" ##", "").split(" [SEP] ")
            expected = theirs(
                *(next(t for t in TEXTS if t.startswith(x)) for x in (query, passage)),
                truncation="only_second",
                max_length=24,
                return_token_type_ids=True,
            )
            assert ids[mask].tolist() == expected["input_ids"]
            assert types[mask].tolist() == expected["token_type_ids"]
            drawn.setdefault(query, set()).add(passage[:4])
    assert drawn == {
        "the sea": {"wide", "dry ", "grey"},
        "a house": {"wide", "dry "},
        "a stone": {"grey", "wide", "dry "},
    }
    assert batches.rows()[0][0] == 0
    with pytest.raises(DataError, match="no other row has one for it"):
        batches_of(prepared(tmp_path, rows[:1]).tokens, 3).epoch(0)
