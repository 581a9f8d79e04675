"""Preparation: what is in the store."""

from __future__ import annotations

import itertools
import json
import random
import uuid
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailor.data import blocks, epoch_order
from tailor.data.batches import Batches
from tailor.data.blocks import Blocks, measure
from tailor.data.facts import of_split
from tailor.data.large_batches import LargeBatches
from tailor.data.token_store import TokenStore
from tailor.encode import sources
from tailor.encode.prepare import Progress, prepare
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import DataError
from tailor.plan.batches import BatchSpec
from tailor.spec.data import Data
from tailor.spec.methods.pretrain import Pretrain
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model
from tailor.store import Store
from tests.helpers.models import byte_tokenizer
from tests.helpers.preparation import contents, talk, texts, write


def test_examples_and_report(bench):
    prepared = bench()
    assert not prepared.reused
    tokenizer = load_tokenizer(str(bench.model))
    examples = contents(prepared.tokens)
    assert [row for _, row, _, _ in examples] == list(range(1, 201))
    source, _, ids, spans = examples[21]
    assert source == 0
    assert tokenizer.decode(ids).startswith(
        "<|im_start|>user\nWhat is 21 and 21?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [tokenizer.decode(ids[a:b]) for a, b in spans] == ["It is 42.<|im_end|>"]
    manifest = prepared.tokens.manifest
    assert manifest["template"]["name"] == "chatml"
    assert manifest["template"]["end_of_turn_ids"] == tokenizer.encode("<|im_end|>")
    (report,) = manifest["report"]["sources"]
    assert (report["format"], report["format_guessed"]) == ("messages", True)
    assert (report["rows"], report["kept"], report["examples"]) == (200, 200, 200)
    split = prepared.tokens.split("train")
    assert report["tokens"] == split.lengths.sum() == sum(len(ids) for _, _, ids, _ in examples)
    assert report["supervised_tokens"] == split.supervised.sum()
    assert report["lengths"]["max"] == split.lengths.max()
    assert sum(manifest["report"]["train"]["histogram"]["counts"]) == 200


def test_parts_make_no_difference(bench, monkeypatch):
    whole = contents(bench(store=bench.store + "1").tokens)
    monkeypatch.setattr(sources, "PART_BYTES", 1000)
    parts = bench(store=bench.store + "2").tokens
    assert len(parts.manifest["shards"]) > 10
    assert contents(parts) == whole


@pytest.mark.parametrize("kind", ["messages", "text", "completion"])
def test_chunks_lose_nothing(bench, kind):
    body = "".join(random.Random(0).choices("abc de", k=700))
    row = {
        "messages": {"messages": [{"role": "user", "content": "Go"}, {"role": "assistant", "content": body}]},
        "text": {"text": body},
        "completion": {"prompt": "Go " * 20, "response": body},
    }[kind]
    path = write(bench.folder / "long.jsonl", [row])
    whole = bench(train=[{"path": path}], max_length=2048).tokens
    chunked = bench(train=[{"path": path}], on_long="chunk", max_length=100).tokens
    truncated = bench(train=[{"path": path}], on_long="truncate", max_length=100).tokens
    assert max(chunked.split("train").lengths) == 100
    assert chunked.split("train").supervised.sum() == whole.split("train").supervised.sum()
    (_, _, ids, spans), pieces = contents(whole)[0], contents(chunked)
    targets = [ids[at] for a, b in spans for at in range(max(a, 1), b)]
    assert [piece[at] for _, _, piece, own in pieces for a, b in own for at in range(max(a, 1), b)] == targets
    report = chunked.manifest["report"]["sources"][0]
    assert (report["chunked"], report["pieces"]) == (1, len(pieces))
    cut = truncated.manifest["report"]["sources"][0]
    assert cut["truncated"] == 1
    assert cut["supervised_tokens_cut"] + truncated.split("train").supervised.sum() == len(targets)
    assert contents(truncated)[0][2] == ids[:100]
    with pytest.raises(DataError, match=r"1 too_long: .*long.jsonl:1 \d+ tokens; data.max_length is 100"):
        bench(train=[{"path": path}], max_length=100)


def test_text_and_completion(bench):
    byte_tokenizer(bench.model, bos=True)
    text = write(bench.folder / "t.jsonl", [{"text": "abc"}, {"text": "abc</s>"}])
    completion = write(bench.folder / "c.jsonl", [{"prompt": "ab", "response": "c"}])
    tokenizer = load_tokenizer(str(bench.model))
    tokens = bench(train=[{"path": text}, {"path": completion}], template=None).tokens
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    abc = tokenizer.encode("abc")
    assert contents(tokens) == [
        (0, 1, [bos, *abc, eos], [[0, 5]]),
        (0, 2, [bos, *abc, eos], [[0, 5]]),
        (1, 1, [bos, *abc, eos], [[3, 5]]),
    ]
    assert tokenizer.encode_prompt("ab") == [bos, *abc[:2]]
    assert tokens.template is None
    everything = bench(train=[{"path": completion}], template=None, train_on="everything").tokens
    assert contents(everything)[0][3] == [[0, 5]]
    doubled = write(bench.folder / "d.jsonl", [{"text": "<s>abc"}])
    with pytest.raises(DataError, match="starts with a BOS token, and the tokenizer adds another one"):
        bench(train=[{"path": doubled}], template=None)


def test_limit_and_several_files(bench):
    folder = bench.folder / "many"
    folder.mkdir()
    for number in range(3):
        write(folder / f"{number}.jsonl", [talk(10 * number + n) for n in range(10)])
    tokens = bench(train=[{"path": str(folder), "limit": 14}]).tokens
    assert [row for _, row, _, _ in contents(tokens)] == [*range(1, 11), *range(1, 5)]
    assert len(bench(train=[{"path": str(folder)}]).tokens.split("train")) == 30


def test_both_templates_of_a_model_are_kept(bench):
    """Rows with tools are rendered with the second one, so an artifact without it would read them otherwise."""
    path = bench.model / "tokenizer_config.json"
    config = json.loads(path.read_text())
    both = {
        "default": config["chat_template"],
        "tool_use": "tools: {{ tools | tojson }} " + config["chat_template"],
    }
    config["chat_template"] = [{"name": name, "template": text} for name, text in both.items()]
    path.write_text(json.dumps(config))
    row = {**talk(1), "tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}]}
    tokens = bench(train=[{"path": write(bench.folder / "tools.jsonl", [row])}], template=None).tokens
    ids = tokens.split("train").example(0).input_ids.tolist()
    tokenizer = load_tokenizer(str(bench.model))
    assert tokenizer.decode(ids).startswith("tools: "), "the control: the row is rendered with it"
    assert tokens.template["text"] == both["default"]
    assert tokens.template["tool_use"] == both["tool_use"]


def test_holdout_is_stable_and_does_not_split_duplicates(bench):
    def held(rows: list[Any]) -> set[str]:
        path = write(bench.folder / "h.jsonl", rows)
        tokens = bench(train=[{"path": path}], holdout=0.3).tokens
        sides = [
            {json.dumps(rows[row - 1]) for _, row, _, _ in contents(tokens, split)}
            for split in ("train", "evaluation")
        ]
        assert not sides[0] & sides[1]
        assert len(tokens.split("train")) + len(tokens.split("evaluation")) == len(rows)
        return sides[1]

    rows = [talk(n) for n in range(150)]
    first = held(rows)
    assert 25 < len(first) < 65
    random.Random(1).shuffle(rows)
    assert held(rows) == first
    assert held(rows + rows[:50]) == first
    more = held(rows + [talk(n) for n in range(150, 300)])
    assert more & {json.dumps(row) for row in rows} == first
    assert len(more) > len(first)


def test_evaluation_sources_have_their_own_split(bench):
    other = write(bench.folder / "e.jsonl", [talk(n) for n in range(5)])
    tokens = bench(evaluation=[{"path": other}]).tokens
    assert len(tokens.split("evaluation")) == 5
    assert len(tokens.split("train")) == 200
    assert [source["split"] for source in tokens.manifest["report"]["sources"]] == ["train", "evaluation"]


def test_a_remote_store_and_remote_rows(bench, monkeypatch, tmp_path):
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "PART_BYTES", 2000)
    url = f"memory://{uuid.uuid4().hex}"
    Store(url).write_bytes("rows.jsonl", Path(bench.rows).read_bytes())
    data = {"train": [{"path": f"{url}/rows.jsonl"}], "holdout": 0.2, "store": f"{url}/tokens"}
    remote = bench(**data)
    local = bench(holdout=0.2)
    for split in ("train", "evaluation"):
        assert contents(remote.tokens, split) == contents(local.tokens, split)
    assert bench(**data).reused
    assert Store(f"{url}/tokens").names() == [remote.tokens.fingerprint]
    Store(url).write_bytes("rows.jsonl", Path(bench.rows).read_bytes()[:-20] + b"\n")
    with pytest.raises(DataError, match=r"rows.jsonl:200 not valid JSON"):
        bench(**data)


def test_progress(bench, monkeypatch):
    monkeypatch.setattr(sources, "PART_BYTES", 4000)
    seen: list[Progress] = []
    data = Data(train=[{"path": bench.rows}], template="chatml")
    prepare(data, Model(path=str(bench.model)), Sft(name="sft"), bench.store, progress=seen.append)
    assert len(seen) > 3
    assert (seen[-1].rows, seen[-1].bytes) == (200, seen[-1].total_bytes)
    assert seen[-1].bytes == Path(bench.rows).stat().st_size


def test_documents_to_join_are_kept_whole_and_serve_every_length(bench, tmp_path):
    train = [{"path": texts(tmp_path)}]
    join = Pretrain(name="pretrain")
    joined = bench(train=train, template=None, max_length=32, method=join)
    split = joined.tokens.split("train")
    tokenizer = load_tokenizer(str(bench.model))
    for number in (0, 29):
        text = f"Text {number}: " + "sew " * number
        assert tokenizer.decode(split.example(number).input_ids) == text + "</s>"
    assert split.supervised.sum() == split.lengths.sum() - len(split)
    assert bench(train=train, template=None, max_length=99, method=join).reused
    # The control: isolated ones must fit.
    isolate = Pretrain(name="pretrain", documents="isolate")
    with pytest.raises(DataError, match="too_long"):
        bench(train=train, template=None, max_length=32, method=isolate)
    chunked = bench(train=train, template=None, max_length=32, on_long="chunk", method=isolate).tokens
    assert chunked.split("train").lengths.max() == 32


def test_the_table_of_blocks_is_that_of_the_examples(bench, monkeypatch):
    """Each task measures its own shard; the rows of a table follow the shards of the manifest."""
    monkeypatch.setattr(sources, "PART_BYTES", 1000)
    monkeypatch.setattr(blocks, "BLOCK", 4)
    monkeypatch.setattr(blocks, "MIN_ROWS", 1)
    other = write(bench.folder / "other.jsonl", [talk(n) for n in range(500, 540)])
    tokens = bench(train=[{"path": bench.rows}, {"path": other}], holdout=0.3).tokens
    for name in ("train", "evaluation"):
        split = tokens.split(name)
        table = split.blocks(256)
        assert len(np.unique(table.shard)) == split.shards > 10
        assert table.examples.sum() == len(split)
        columns = [split.lengths, split.supervised, split.source, split.position]
        starts = split.shard_starts
        parts = [slice(start, end) for start, end in itertools.pairwise(starts.tolist())]
        measured = Blocks.join(measure(*(column[part] for column in columns), 256) for part in parts)
        for field in fields(Blocks):
            assert getattr(table, field.name).tolist() == getattr(measured, field.name).tolist()
    assert split._read_blocks(128) is None  # of another row length


def test_a_prepared_split_is_batched_in_windows(bench, monkeypatch):
    monkeypatch.setattr(sources, "PART_BYTES", 1000)
    tokens = bench().tokens
    spec = BatchSpec(seed=1, max_length=256, pack=True, batch_size=2)
    assert type(of_split(tokens.split("train"), spec)) is Batches  # control: one window
    monkeypatch.setattr(epoch_order, "WINDOW", 50)
    large = of_split(TokenStore.open(tokens.url).split("train"), spec)
    assert isinstance(large, LargeBatches)
    split = tokens.split("train")
    arrays = (split.lengths, split.supervised, split.source, split.position)
    same = LargeBatches(*arrays, spec, lambda: split.blocks(256))
    assert list(large.epoch(0)) == list(same.epoch(0))
    assert sorted(one for batch in large.epoch(0) for row in batch for one in row) == list(range(200))
    assert sorted(one for row in large.rows() for one in row) == list(range(200))
