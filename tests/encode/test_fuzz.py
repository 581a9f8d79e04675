"""Rows and files broken at random, over all formats: nothing but a TailorError, and kept + counted = read."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailor.encode import tasks
from tailor.encode.formats.base import Format
from tailor.errors import TailorError
from tailor.spec.data import FORMAT_KINDS
from tailor.spec.methods.dpo import Dpo
from tailor.spec.methods.gritlm import Gritlm
from tailor.spec.methods.kto import Kto
from tailor.spec.methods.sft import Sft
from tailor.spec.methods.union import Method
from tests.helpers.fuzzing import broken
from tests.helpers.preparation import Bench

ROWS_OF_FILE = 20
BUDGET = {"unreadable": 1.0, "dropped": 1.0}
METHODS: dict[str, Method] = {
    "pairs": Dpo(name="dpo"),
    "rated": Kto(name="kto"),
    "relevance": Gritlm(name="gritlm", mode="embedding", embedding_batch_size=2),
}
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
GOOD: dict[str, dict[str, Any]] = {
    "messages": {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "s"}]},
            USER,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "1"},
            {**ANSWER, "weight": 1},
        ],
        "tools": [TOOL],
    },
    "sharegpt": {"conversations": TURNS, "system": "s", "tools": json.dumps([TOOL])},
    "firefly": {"conversation": [{"human": "q", "assistant": "a"}], "system": "s"},
    "alpaca": {"instruction": "q", "input": "i", "output": "a", "system": "s", "history": [["q", "a"]]},
    "completion": {"prompt": "q", "response": "a"},
    "completion_messages": {"prompt": [USER], "completion": [ANSWER], "tools": [TOOL]},
    "text": {"text": "a text"},
    "turns": {"text": ["q", "a"]},
    "preference": {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "b"}]},
    "preference_text": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "preference_sharegpt": {
        "conversations": TURNS[:1],
        "chosen": TURNS[1],
        "rejected": {"from": "gpt", "value": "b"},
    },
    "preference_alpaca": {
        "instruction": "q",
        "input": "i",
        "chosen": "a",
        "rejected": "b",
        "history": [["q", "a"]],
    },
    "unpaired": {"prompt": [USER], "completion": [ANSWER], "label": True},
    "unpaired_text": {"prompt": "q", "completion": "a", "label": False},
    "unpaired_alpaca": {
        "instruction": "q",
        "input": "i",
        "output": "a",
        "kto_tag": True,
        "history": [["q", "a"]],
    },
    "unpaired_sharegpt": {"conversations": TURNS, "kto_tag": "false", "system": "s"},
    "gritlm": {"query": ["i", "q"], "pos": [["", "p"]], "neg": [["", "n"]]},
    "flagembedding": {"query": "q", "pos": ["p"], "neg": ["n"], "prompt": "i"},
    "tevatron": {
        "query": "q",
        "positive_passages": [{"title": "t", "text": "p"}],
        "negative_passages": [{"text": "n"}],
    },
    "sentence_transformers": {"anchor": "q", "positive": "p", "negative_1": "n", "negative_2": "m"},
}
DEEP = '{"messages": ' + "[" * 3000 + "]" * 3000 + "}"


def prepared(
    bench: Bench, chance: random.Random, path: Path, name: str, **data: Any
) -> dict[str, Any] | None:
    """The report of a source, or None where preparation refuses it by name."""
    source: dict[str, Any] = {"path": str(path)}
    if chance.random() < 0.7:
        source["format"] = name
    settings = {"holdout": 0.5} if chance.random() < 0.3 else {}
    method = METHODS.get(FORMAT_KINDS[name]) or Sft(name="sft")
    on_long = chance.choice(["drop", "truncate"])
    try:
        manifest = bench(
            train=[source], method=method, budget=BUDGET, on_long=on_long, max_length=768, **settings, **data
        ).tokens.manifest
    except TailorError:
        return None
    (report,) = manifest["report"]["sources"]
    counted = sum(loss["count"] for key in ("unreadable", "dropped") for loss in report[key].values())
    assert report["kept"] + counted == report["rows"], (path.read_bytes()[:2000], report)
    return report


def broken_rows(chance: random.Random, good: dict[str, Any]) -> Iterator[str]:
    for _ in range(ROWS_OF_FILE):
        line = json.dumps(broken(good, chance))
        if chance.random() < 0.1:
            line = chance.choice(
                [
                    line[:-3] or "{",
                    DEEP,
                    "9" * 5000,
                    "null",
                    '"x"',
                    line + "}",
                    "\\ud800" + line,
                    line + "\x00",
                ]
            )
        yield line


def fuzz_rows(bench: Bench, chance: random.Random, count: int) -> tuple[int, int, int]:
    """Rows tried, rows kept, and files refused whole."""
    tried = kept = refused = 0
    path = bench.folder / "rows.jsonl"
    while tried < count:
        for name, good in GOOD.items():
            lines = [json.dumps(good), *broken_rows(chance, good), json.dumps(good)]
            path.write_text("\n".join(lines) + "\n")
            report = prepared(bench, chance, path, name)
            tried += len(lines)
            assert report is None or report["rows"] == len(lines)
            kept += 0 if report is None else report["kept"]
            refused += report is None
    return tried, kept, refused


def encoded(good: dict[str, Any], rows: int) -> dict[str, bytes]:
    """A file of equal rows in every form that can hold them."""
    lines = (json.dumps(good) + "\n").encode() * rows
    stream, text = io.BytesIO(), io.StringIO()
    pq.write_table(pa.Table.from_pylist([good] * rows), stream, row_group_size=7)
    files = {
        "jsonl": lines,
        "jsonl.gz": gzip.compress(lines),
        "jsonl.bz2": bz2.compress(lines),
        "jsonl.xz": lzma.compress(lines),
        "json": json.dumps([good] * rows).encode(),
        "json.gz": gzip.compress(json.dumps({"data": [good] * rows}).encode()),
        "parquet": stream.getvalue(),
    }
    if all(isinstance(value, str) for value in good.values()):
        for suffix, delimiter in (("csv", ","), ("tsv", "\t")):
            text = io.StringIO()
            writer = csv.DictWriter(text, good, delimiter=delimiter, quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows([good] * rows)
            files[suffix] = text.getvalue().encode()
            files[f"{suffix}.gz"] = gzip.compress(text.getvalue().encode())
    return files


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The bytes cut, or with some of them changed, removed, doubled or swapped."""
    found = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(found)) if found else 0
        action = chance.randrange(5)
        if action == 0:
            found = found[:at]
        elif action == 1 and found:
            found[at] = chance.choice([0, 0xFF, 0x22, 0x0A, 0x0D, 0x2C, 0x7B, chance.randrange(256)])
        elif action == 2:
            del found[at : at + chance.randint(1, 30)]
        elif action == 3:
            found[at:at] = found[at : at + 40] + chance.choice(
                [b'"', b"\xff\xfe", b"\n", b"\x00", b"\t,", b""]
            )
        else:
            found = found[at:] + found[:at]
    return bytes(found)


def fuzz_files(bench: Bench, chance: random.Random, count: int) -> tuple[int, int]:
    """Files that were read although they are damaged, and files refused."""
    files = [
        (name, suffix, content)
        # Columns of Parquet hold values of one kind.
        for name, good in {**GOOD, "messages": {"messages": [USER, ANSWER]}}.items()
        for suffix, content in encoded(good, ROWS_OF_FILE).items()
    ]
    read = 0
    for _ in range(count):
        name, suffix, content = chance.choice(files)
        path = bench.folder / f"rows.{suffix}"
        path.write_bytes(damaged(content, chance))
        read += prepared(bench, chance, path, name) is not None
        path.unlink()
    return read, count - read


def test_broken_rows_and_files(bench: Bench):
    chance = random.Random(15)
    assert set(GOOD) == set(FORMAT_KINDS)
    tried, kept, refused = fuzz_rows(bench, chance, 2000)
    assert tried >= 2000
    assert 0.2 * tried < kept < tried
    assert refused < 0.3 * tried / ROWS_OF_FILE
    read, refused = fuzz_files(bench, chance, 150)
    assert read > 20
    assert refused > 20


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_broken_rows_and_files(bench: Bench):
    chance = random.Random(16)
    fuzz_rows(bench, chance, 50_000)
    fuzz_files(bench, chance, 4000)


def test_without_the_guard_an_odd_row_ends_the_command(bench: Bench, monkeypatch):
    """The control: a format that fails on numbers, with the guard and without; and a guard that loses rows."""
    record = Format.record

    def fails(fmt: Format, row: Any, columns: Any) -> Any:
        if isinstance(row, dict) and any(type(value) in (int, float) for value in row.values()):
            raise TypeError("a number")
        return record(fmt, row, columns)

    def unguarded(fmt: Any, row: Any, columns: Any) -> Any:
        return fmt.record(row, columns), 0

    monkeypatch.setattr(Format, "record", fails)
    with monkeypatch.context() as without:
        without.setattr(tasks, "guarded", unguarded)
        with pytest.raises(TypeError, match="a number"):
            fuzz_rows(bench, random.Random(15), 400)
    fuzz_rows(bench, random.Random(15), 400)
    monkeypatch.undo()
    monkeypatch.setattr(tasks.TaskReport, "leave_out", lambda *_: None)
    with pytest.raises(AssertionError):
        fuzz_rows(bench, random.Random(15), 2000)
