"""Preparation: what is in the store, when it is made anew, what is refused, and what a kill leaves."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tailor.data.token_store import TokenStore
from tailor.encode import prepare as prepare_module
from tailor.encode import sources
from tailor.encode.prepare import Prepared, Progress, prepare
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import DataError, ModelError, TailorError, TemplateError
from tailor.spec.data import Data
from tailor.spec.methods.pretrain import Pretrain
from tailor.spec.methods.sft import Sft
from tailor.spec.methods.union import Method
from tailor.spec.model import Model
from tailor.store import Store
from tests.helpers.models import byte_tokenizer


def talk(number: int) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"What is {number} and {number}?"},
            {"role": "assistant", "content": f"It is {2 * number}."},
        ]
    }


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


class Bench:
    """A model folder, a data file and a token store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = byte_tokenizer(folder / "model")
        self.rows = write(folder / "rows.jsonl", [talk(n) for n in range(200)])
        self.store = str(folder / "tokens")

    def __call__(
        self,
        *,
        train_on: str = "assistant",
        method: Method | None = None,
        store: str | None = None,
        **data: Any,
    ) -> Prepared:
        method = method or Sft(name="sft", train_on=train_on)
        data = {"train": [{"path": self.rows}], "template": "chatml", "max_length": 256, **data}
        return prepare(Data(**data), Model(path=str(self.model)), method, store or self.store)


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path)


def contents(tokens: TokenStore, split: str = "train") -> list[tuple[int, int, list[int], list[list[int]]]]:
    part = tokens.split(split)
    return [
        (
            int(part.source[i]),
            int(part.row[i]),
            part.example(i).input_ids.tolist(),
            part.example(i).spans.tolist(),
        )
        for i in range(len(part))
    ]


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


def test_broken_rows_are_counted_named_and_refused(bench, monkeypatch):
    rows: list[Any] = [talk(n) for n in range(100)]
    rows[2] = '{"messages": [{"role": "user"'
    rows[50] = {"talk": []}
    rows[51] = {"messages": []}
    rows[70] = {"messages": "hello"}
    rows[80] = {"messages": [{"role": "assistant", "content": "x"}]}
    rows[90] = {"messages": [{"role": "user", "content": "no answer"}]}
    rows[95] = {"messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "x"}]}
    path = write(bench.folder / "broken.jsonl", rows)
    for size in (sources.PART_BYTES, 700):
        monkeypatch.setattr(sources, "PART_BYTES", size)
        with pytest.raises(DataError) as caught:
            bench(train=[{"path": path}], store=f"{bench.store}{size}")
        message = caught.value.message
        assert message.startswith(
            f"data.train[0] {path}: 6 of 100 rows cannot be read, and the budget allows none\n"
        )
        for name in (
            "3 not JSON",
            "51 missing key `messages`",
            "52 the conversation is empty",
            "71 `messages` must be a list",
        ):
            assert f"{path}:{name}" in message
        assert f"{path}:81 the conversation has no user turn" in message
        assert f"{path}:96 the text has a character that is not valid Unicode" in message
        assert caught.value.hint == "fix these rows, or allow it with data.budget.unreadable: 0.06"
        # With that budget the rest is trained on, from the tokens that are there already.
        prepared = bench(train=[{"path": path}], store=f"{bench.store}{size}", budget={"unreadable": 0.06})
        assert prepared.reused
        (report,) = prepared.tokens.manifest["report"]["sources"]
        assert report["kept"] == 93
        assert report["unreadable"]["bad_json"]["count"] == 1
        assert report["dropped"]["nothing_supervised"] == {
            "count": 1,
            "first": [[f"{path}:91", "no token of it would be learned"]],
        }
        assert [row for _, row, _, _ in contents(prepared.tokens)][:4] == [1, 2, 4, 5]


def test_budgets_are_checked_per_source_and_on_reuse(bench):
    bench(max_length=47, budget={"dropped": 1.0})
    with pytest.raises(DataError, match=r"of 200 rows would be dropped, and the budget allows 5 %") as caught:
        bench(max_length=47)
    assert caught.value.hint is not None
    assert (
        "data.max_length or set data.on_long, or allow it with data.budget.dropped: 0." in caught.value.hint
    )
    with pytest.raises(DataError, match="rows would be truncated"):
        bench(max_length=47, on_long="truncate", budget={"truncated": 0.0})


def test_no_usable_row_is_refused_and_not_kept(bench):
    path = write(bench.folder / "none.jsonl", [{"messages": [{"role": "user", "content": "x"}]}] * 3)
    with pytest.raises(DataError, match="none of its 3 rows can be used\n  3 nothing_supervised"):
        bench(train=[{"path": path}], budget={"unreadable": 1.0, "dropped": 1.0})
    assert Store(bench.store).names() == []


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
    with pytest.raises(DataError, match=r"1 too_long: .*long.jsonl:1 \d+ tokens, max_length is 100"):
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
    with pytest.raises(DataError, match="begins with a BOS token, and the tokenizer adds another"):
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


def test_reused_until_something_that_matters_changes(bench):
    first = bench()
    assert bench().reused
    # What only decides how examples are shown or budgeted does not matter.
    assert bench(pack=False, budget={"dropped": 0.5}, train=[{"path": bench.rows, "weight": 3.0}]).reused
    made = [
        bench(max_length=127),
        bench(on_long="truncate"),
        bench(holdout=0.1),
        bench(template="qwen-2.5"),
        bench(train_on="last_assistant"),
        bench(train=[{"path": bench.rows, "limit": 100}]),
    ]
    template = bench.folder / "own.jinja"
    template.write_text(
        Path(prepare_module.__file__).with_name("templates").joinpath("chatml.jinja").read_text()
    )
    made.append(bench(template=str(template)))
    template.write_text(template.read_text() + "{# another text #}")
    made.append(bench(template=str(template)))
    content = json.loads((bench.model / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (bench.model / "tokenizer.json").write_text(json.dumps(content))
    made.append(bench())
    write(Path(bench.rows), [talk(n) for n in range(199)])
    made.append(bench())
    assert not any(prepared.reused for prepared in made)
    fingerprints = {prepared.tokens.fingerprint for prepared in [first, *made]}
    assert len(fingerprints) == len(made) + 1
    assert sorted(Store(bench.store).names()) == sorted(fingerprints)


def test_a_changed_encoder_prepares_again(bench, monkeypatch):
    bench()
    monkeypatch.setattr(prepare_module, "ENCODE_VERSION", prepare_module.ENCODE_VERSION + 1)
    assert not bench().reused


def test_reuse_reads_no_row(bench, monkeypatch):
    bench()
    monkeypatch.setattr(prepare_module, "_write", None)
    assert bench().reused


def test_holdout_is_stable_and_splits_no_twins(bench):
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
    with pytest.raises(DataError, match=r"rows.jsonl:200 not JSON"):
        bench(**data)


def test_progress(bench, monkeypatch):
    monkeypatch.setattr(sources, "PART_BYTES", 4000)
    seen: list[Progress] = []
    data = Data(train=[{"path": bench.rows}], template="chatml")
    prepare(data, Model(path=str(bench.model)), Sft(name="sft"), bench.store, progress=seen.append)
    assert len(seen) > 3
    assert (seen[-1].rows, seen[-1].bytes) == (200, seen[-1].total_bytes)
    assert seen[-1].bytes == Path(bench.rows).stat().st_size


def test_two_at_once(bench):
    with ThreadPoolExecutor(4) as pool:
        prepared = list(pool.map(lambda _: bench(), range(4)))
    assert len({made.tokens.url for made in prepared}) == 1
    assert all(contents(made.tokens) == contents(prepared[0].tokens) for made in prepared)
    assert Store(bench.store).names() == [prepared[0].tokens.fingerprint]


KILLED = """
import sys, time
from tailor.encode import prepare, sources, tasks
from tailor.spec.data import Data
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model
sources.PART_BYTES = 2000
def slow(work, tasks):
    for number, task in enumerate(tasks):
        yield work(task)
        if number == 2:
            print("half", flush=True)
            time.sleep(60)
data = Data(train=[{"path": sys.argv[1]}], template="chatml", max_length=128)
prepare.prepare(data, Model(path=sys.argv[2]), Sft(name="sft"), sys.argv[3], runner=slow)
"""


def test_a_kill_leaves_no_half_store(bench):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, bench.rows, str(bench.model), bench.store],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (rubbish,) = Store(bench.store).names()
    assert rubbish.startswith(".staging-")
    assert Store(bench.store).names(rubbish)
    prepared = bench()
    assert not prepared.reused
    assert len(prepared.tokens.split("train")) == 200
    # The next preparation sweeps the dead one's rubbish away, but not what a living one is writing.
    assert Store(bench.store).names() == [prepared.tokens.fingerprint]
    living = rubbish.replace(f"-{process.pid}-", f"-{os.getpid()}-")
    Store(bench.store).write_text(f"{living}/x", "")
    bench(max_length=100)
    assert living in Store(bench.store).names()


def texts(folder: Path, count: int = 30) -> str:
    return write(folder / "texts.jsonl", [{"text": f"Text {n}: " + "sew " * n} for n in range(count)])


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


def test_pretraining_takes_plain_texts_only(bench, tmp_path):
    join = Pretrain(name="pretrain")
    with pytest.raises(DataError, match=r"the rows look like messages, which method pretrain does not read"):
        bench(method=join)
    rows = [{"text": f"A text {n}.", "prompt": "p", "response": "r"} for n in range(9)]
    both = [{"path": write(tmp_path / "both.jsonl", rows)}]
    assert (
        bench(train=both, template=None, method=join).tokens.manifest["report"]["sources"][0]["format"]
        == "text"
    )
    with pytest.raises(DataError, match="may be completion or text"):
        bench(train=both, template=None)


def test_a_failing_task_leaves_nothing(bench):
    def failing(work, tasks):
        yield work(tasks[0])
        raise RuntimeError

    with pytest.raises(RuntimeError):
        prepare(
            Data(train=[{"path": bench.rows}], template="chatml"),
            Model(path=str(bench.model)),
            Sft(name="sft"),
            bench.store,
            runner=failing,
        )
    assert Store(bench.store).names() == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"template": "chatmll"},
            TemplateError,
            "`chatmll` is neither a built-in template nor a file; did you mean chatml?",
        ),
        (
            {"template": "gemma"},
            TemplateError,
            "choose a template whose end of turn the tokenizer has: data.template: alpaca, chatml",
        ),
    ],
)
def test_mistakes(bench, change, error, message):
    with pytest.raises(error) as caught:
        bench(**change)
    assert message in str(caught.value)


def test_a_model_without_tokenizer_or_template(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    byte_tokenizer(bench.model, chat_template=None)
    with pytest.raises(TemplateError, match=r"has no chat template; choose one with data.template"):
        bench(template=None)
    bench.model = tmp_path / "nowhere"
    with pytest.raises(ModelError, match=f"model.path: {tmp_path}/nowhere is no local folder"):
        bench()
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(ModelError, match=r"has no tokenizer.json"):
        bench()


def test_errors_survive_pickling(bench):
    import pickle

    with pytest.raises(TailorError) as caught:
        bench(max_length=30)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert type(again) is DataError


def test_preparing_is_quick_to_notice_that_it_is_done(bench):
    bench()
    began = time.monotonic()
    bench()
    assert time.monotonic() - began < 1
