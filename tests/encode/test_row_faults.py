"""Odd values, broken files and rows without bounds: one row ends, by name, and everything else is kept."""

from __future__ import annotations

import bz2
import datetime
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailor.encode import delimited, guard, readers
from tailor.encode.readers import FileRange, Reader
from tailor.encode.records import RowError
from tailor.errors import DataError
from tailor.spec.methods.gritlm import Gritlm
from tests.helpers.preparation import Bench, contents, talk, write

ALL = {"unreadable": 1.0, "dropped": 1.0}
DEEP = "[" * 100_000 + "]" * 100_000


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


def share(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": value} for role, value in turns]}


ALPACA = {"instruction": "a", "output": "c"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": nested(300)}}}
ODD = {
    "a role that is a list": (
        share(("human", "hi"), ("gpt", "yo")),
        share((["human"], "hi")),
        "unknown_role",
    ),
    "a role that is an object": (share(("human", "hi"), ("gpt", "yo")), share(({}, "hi")), "unknown_role"),
    "history that is true": (ALPACA, {**ALPACA, "history": True}, None),
    "history that is NaN": (ALPACA, json.dumps(ALPACA)[:-1] + ', "history": NaN}', None),
    "history of numbers": (ALPACA, {**ALPACA, "history": [1]}, None),
    "deep JSON": (talk(1), '{"messages": ' + DEEP + "}", "too_deep"),
    "a deep argument": (
        talk(1),
        {"messages": [talk(1)["messages"][0], {"role": "assistant", "content": "", "tool_calls": [CALL]}]},
        None,
    ),
    "deep tools": (
        talk(1),
        {**talk(1), "tools": [{"name": "f", "parameters": {"x": nested(300)}}]},
        "too_deep",
    ),
    "an over-long integer": (talk(1), '{"messages": [], "n": ' + "9" * 5000 + "}", "bad_json"),
    "a row that is a number": (talk(1), "17", "wrong_type"),
    "a message that is a text": (talk(1), {"messages": ["a", "b"]}, None),
}


@pytest.mark.parametrize(("good", "odd", "reason"), ODD.values(), ids=ODD)
def test_an_odd_value_ends_its_row(bench: Bench, good, odd, reason):
    path = write(bench.folder / "odd.jsonl", [good, odd, good])
    prepared = bench(train=[{"path": path}], budget=ALL)
    (source,) = prepared.tokens.manifest["report"]["sources"]
    assert (source["rows"], source["kept"]) == (3, 2)
    assert reason is None or list(source["unreadable"]) == [reason]
    assert sum(loss["count"] for loss in source["unreadable"].values()) == 1
    with pytest.raises(DataError, match=r"1 of 3 rows cannot be read(.|\n)*odd.jsonl:2 "):
        bench(train=[{"path": path}])


def test_numbered_columns_are_those_with_ascii_numbers(bench: Bench):
    row = {"anchor": "q", "positive": "p"}
    rows = [
        {**row, "negative_1": "m", "negative_٣": "x", "negative_" + "9" * 5000: "y"},
        {**row, "negative": 5, "negative_1": "m"},
        {**row, "negative": "n", "negative_01": "m", "negative_1": "k"},
    ]
    method = Gritlm(name="gritlm", mode="embedding", embedding_batch_size=2)
    prepared = bench(
        train=[{"path": write(bench.folder / "n.jsonl", rows)}], method=method, budget=ALL, template=None
    )
    (source,) = prepared.tokens.manifest["report"]["sources"]
    assert source["kept"] == 2
    assert [row for _, row, _, _ in contents(prepared.tokens)] == [1] * 3 + [3] * 5


def read(path: Path, kind: str) -> list[Any]:
    return [row for _, row in Reader(FileRange(str(path), path.name, kind, size=path.stat().st_size))]


def test_a_value_of_a_parquet_file_without_counterpart_ends_its_row(tmp_path: Path):
    when = pa.array([0, 2**61, 1], pa.timestamp("us"))
    text = pa.array([b"a", b"b", b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": text, "when": when}), tmp_path / "odd.parquet")
    first, *others = read(tmp_path / "odd.parquet", "parquet")
    assert first == {"text": "a", "when": datetime.datetime(1970, 1, 1)}
    assert [row.reason for row in others] == ["bad_value", "bad_value"]


@pytest.mark.parametrize("holdout", [None, 0.5])
def test_a_value_that_is_no_json_ends_its_row(bench: Bench, holdout):
    messages = talk(1)["messages"]
    rows = [{"messages": [{**messages[0], "at": at}, messages[1]]} for at in (None, b"x", None)]
    pq.write_table(pa.Table.from_pylist(rows), bench.folder / "at.parquet")
    prepared = bench(train=[{"path": str(bench.folder / "at.parquet")}], budget=ALL, holdout=holdout)
    (source,) = prepared.tokens.manifest["report"]["sources"]
    assert source["kept"] == 2
    assert source["unreadable"]["bad_value"]["count"] == 1


def test_a_column_that_a_file_has_twice_is_refused(tmp_path: Path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="has the column `text` twice"):
        read(tmp_path / "twice.parquet", "parquet")


LINES = b"".join(json.dumps(talk(n)).encode() + b"\n" for n in range(200))


def _parquet() -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([talk(n) for n in range(200)]), stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", gzip.compress(LINES)),
        ("a.jsonl.bz2", bz2.compress(LINES)),
        ("a.jsonl.xz", lzma.compress(LINES)),
        ("a.json.gz", gzip.compress(LINES)),
        ("a.json.xz", lzma.compress(LINES)),
        ("a.parquet", _parquet()),
    ],
)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9])
def test_a_broken_file_is_named(bench: Bench, name, content, keep):
    path = bench.folder / name
    path.write_bytes(content[: int(keep * len(content))] or b"\x1f\x8b\xfd7z")
    with pytest.raises(DataError, match=name):
        bench(train=[{"path": str(path)}], budget=ALL)
    # The control: the whole file is read.
    path.write_bytes(content)
    assert bench(train=[{"path": str(path)}]).tokens.manifest["report"]["sources"][0]["kept"] == 200


def test_a_line_and_a_row_have_bounds(bench: Bench, monkeypatch):
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 2000)
    monkeypatch.setattr(guard, "MAX_CHARACTERS", 1000)
    long = {"messages": [{"role": "user", "content": "x" * 1500}, {"role": "assistant", "content": "y"}]}
    path = bench.folder / "long.jsonl.gz"
    path.write_bytes(
        gzip.compress(
            "\n".join(json.dumps(row) for row in (talk(1), long, talk(2))).encode()
            + b'\n{"messages": "'
            + b"z" * 10_000_000
            + b'"}\n'
            + json.dumps(talk(3)).encode()
        )
    )
    prepared = bench(train=[{"path": str(path)}], budget=ALL)
    (source,) = prepared.tokens.manifest["report"]["sources"]
    assert (source["rows"], source["kept"]) == (5, 3)
    (first, second) = source["dropped"]["too_long"]["first"]
    assert first == [f"{path}:2", "1,514 characters; at most 1,000 of a row are read, so split it"]
    assert second == [f"{path}:4", "a line of 10,000,017 bytes; at most 2,000 are read"]
    assert [row for _, row, _, _ in contents(prepared.tokens)] == [1, 3, 5]


def rows_of(text: str | bytes, delimiter: str = ",") -> list[Any]:
    raw = text.encode() if isinstance(text, str) else text
    return list(delimited.read(io.BytesIO(raw), "a.csv", delimiter))


def told(rows: list[Any]) -> list[Any]:
    return [f"{row.reason}: {row.detail}" if isinstance(row, RowError) else row for row in rows]


def test_a_csv_row_that_breaks_the_rules_ends_alone():
    unclosed = "a quote is opened and never closed"
    after = 'text after a closing quote; write a quote inside a value as ""'
    assert told(rows_of('text\nfirst\n"second\nthird\nfourth\n')) == [
        {"text": "first"},
        f"bad_csv: {unclosed} (line 3)",
        {"text": "third"},
        {"text": "fourth"},
    ]
    assert told(rows_of('a,b\nq1,"He said "hi" to me"\nq2,r2\n')) == [
        f"bad_csv: {after} (line 2)",
        {"a": "q2", "b": "r2"},
    ]
    # A quote that closes in a later row is found there, and the rows between are read.
    assert told(rows_of('a,b\nq1,"r1\nq2,r2\nq3,"r3"\nq4,r4\n')) == [
        f"bad_csv: {after} (line 2)",
        {"a": "q2", "b": "r2"},
        {"a": "q3", "b": "r3"},
        {"a": "q4", "b": "r4"},
    ]
    assert told(rows_of("a,b\n1\n2,3,4\n5,6\n")) == [
        "bad_csv: 1 values, and the header has 2 fields (line 2)",
        "bad_csv: 3 values, and the header has 2 fields (line 3)",
        {"a": "5", "b": "6"},
    ]
    assert told(rows_of(b"a,b\n\xff,1\n2,3\n")) == ["bad_encoding: not UTF-8 (line 2)", {"a": "2", "b": "3"}]
    # The control: what the rules allow is read.
    assert rows_of('a,b\r\n"x ""y""\r\nz","1,2"\r\n\r\n5" pipe,\r\n') == [
        {"a": 'x "y"\r\nz', "b": "1,2"},
        {"a": '5" pipe'},
    ]


def test_quotes_of_tsv_are_text():
    assert rows_of('a\tb\n"x\ty"\n', "\t") == [{"a": '"x', "b": 'y"'}]
    (row,) = told(rows_of('a\tb\n"x\n', "\t"))
    assert row.startswith("bad_csv: 1 values, and the header has 2 fields; in .tsv a quote is text")


def test_headers():
    assert rows_of(",text\n0,x\n") == [{"Unnamed: 0": "0", "text": "x"}]
    assert rows_of(",Unnamed: 0,text\n0,1,x\n") == [{"Unnamed: 0.1": "0", "Unnamed: 0": "1", "text": "x"}]
    assert rows_of("") == rows_of("a,b\n") == []
    for text, why in (
        ("a,b,a\n1,2,3\n", "the column `a` twice"),
        ('"a\n', "header cannot be read"),
        (b"\xff\n", "UTF-8"),
    ):
        with pytest.raises(DataError, match=why):
            rows_of(text)


def test_a_csv_row_has_a_bound(monkeypatch):
    monkeypatch.setattr(delimited, "MAX_ROW_CHARACTERS", 50)
    assert told(rows_of("a\n" + "x" * 1000 + "\ny\n")) == [
        "too_long: over 50 characters (line 2)",
        {"a": "y"},
    ]
    rows = told(rows_of('a\n"' + "x\n" * 40 + "y\n"))
    assert rows == ["too_long: over 50 characters (line 2)", *[{"a": "x"}] * 39, {"a": "y"}]
