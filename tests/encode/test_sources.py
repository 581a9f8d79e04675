"""Files to rows: every kind, wherever it lies, whole or in parts, with exact row numbers."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import os
import uuid
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailor.encode import sources
from tailor.encode.readers import Reader
from tailor.encode.records import RowError
from tailor.encode.sources import Resolved, cut
from tailor.errors import DataError
from tailor.spec.data import Source
from tailor.spec.methods.sft import Sft
from tests.helpers.http_server import web


def resolve(source: Source, key: str) -> Resolved:
    return sources.resolve(source, key, Sft(name="sft"))


ROWS = [{"prompt": f"question {n} é", "response": f"answer\n{n}"} for n in range(1, 101)]


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: list[dict], delimiter: str = ",") -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def parquet(rows: list[dict]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream, row_group_size=30)
    return stream.getvalue()


CONTENTS = {
    "a.jsonl": jsonl(ROWS),
    "a.jsonl.gz": gzip.compress(jsonl(ROWS)),
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "wrapped.json": json.dumps({"data": ROWS}).encode(),
    "lines.json": jsonl(ROWS),
    "a.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "a.parquet": parquet(ROWS),
    "a.csv": as_csv(ROWS),
    "bom.csv": b"\xef\xbb\xbf" + as_csv(ROWS),
    "bom.jsonl": b"\xef\xbb\xbf" + jsonl(ROWS),
    "no_newline.jsonl": jsonl(ROWS)[:-1],
}


def read(source: Source) -> list[tuple[str, int, object]]:
    """Rows through the tasks' parts, numbered as `prepare` numbers them."""
    resolved = resolve(source, "data.train[0]")
    rows, before = [], {}
    for parts in cut(resolved):
        for part in parts:
            first = before.get(part.label, 0) if not part.first_row else 0
            reader = Reader(part)
            rows += [(part.label, number + part.first_row + first, row) for number, row in reader]
            before[part.label] = before.get(part.label, 0) + reader.lines
    return rows


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("place", ["local", "memory"])
def test_every_kind(name, place, tmp_path):
    if place == "local":
        (tmp_path / name).write_bytes(CONTENTS[name])
        path = str(tmp_path / name)
    else:
        path = f"memory://{uuid.uuid4().hex}/{name}"
        with fsspec.open(path, "wb") as stream:
            stream.write(CONTENTS[name])
    assert read(Source(path=path)) == [(path, n, row) for n, row in enumerate(ROWS, start=1)]
    assert resolve(Source(path=path), "x").format == "completion"


@pytest.mark.parametrize("size", [50, 333, 1 << 20])
@pytest.mark.parametrize("name", ["a.jsonl", "bom.jsonl", "no_newline.jsonl", "a.parquet"])
def test_parts_of_any_size_give_the_same_rows(name, size, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART_BYTES", size)
    (tmp_path / name).write_bytes(CONTENTS[name])
    source = Source(path=str(tmp_path / name))
    tasks = cut(resolve(source, "x"))
    assert (len(tasks) > 3) == (size < 1000)
    assert [(n, row) for _, n, row in read(source)] == list(enumerate(ROWS, start=1))


def test_line_numbers_count_blank_and_broken_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART_BYTES", 40)
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        b'{"text": "one"}\n\n   \n{"text": "two"\n'
        + '{"text": "drei"}\n'.encode("utf-16-le")
        + b'\n{"text": "six"}'
    )
    rows = read(Source(path=str(path), format="text"))
    assert next((n, row) for _, n, row in rows if not isinstance(row, RowError)) == (1, {"text": "one"})
    assert next((n, row.reason) for _, n, row in rows if isinstance(row, RowError)) == (4, "bad_json")
    assert rows[-1][1:] == (path.read_bytes().count(b"\n") + 1, {"text": "six"})


def test_text_files_are_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes("erste\r\n\nzweite é\n".encode() + b"\xff\xfe\n")
    rows = read(Source(path=str(tmp_path / "a.txt")))
    assert [row[1:] for row in rows[:2]] == [(1, {"text": "erste"}), (3, {"text": "zweite é"})]
    assert rows[2][2].reason == "bad_encoding"


def test_folders_globs_and_relative_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "d/b.jsonl",
        "d/sub/a.jsonl",
        "d/README.md",
        "d/.hidden.jsonl",
        "d/_tmp/x.jsonl",
        "d/empty.jsonl",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"" if "empty" in name else jsonl(ROWS[:2]))
    assert [row[:2] for row in read(Source(path="d"))] == [
        ("d/b.jsonl", 1),
        ("d/b.jsonl", 2),
        ("d/sub/a.jsonl", 1),
        ("d/sub/a.jsonl", 2),
    ]
    assert [row[:2] for row in read(Source(path="d/*.jsonl"))] == [("d/b.jsonl", 1), ("d/b.jsonl", 2)]


def test_a_folder_made_by_save_to_disk(tmp_path):
    import datasets

    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "extra": n}]}
        for n in (1, 2)
    ]
    rows.append({"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]})
    dataset = datasets.Dataset.from_list(rows)
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(tmp_path / "two")
    # Nulls that the columnar format put there are gone.
    assert [row for _, _, row in read(Source(path=str(tmp_path / "one")))] == rows
    assert len(read(Source(path=str(tmp_path / "two"), split="test"))) == 1
    with pytest.raises(DataError, match=r"no split `nosuch`.*its splits: train, test"):
        resolve(Source(path=str(tmp_path / "two"), split="nosuch"), "x")


@pytest.mark.parametrize(
    ("path", "content", "problem"),
    [
        ("nosuch.jsonl", None, r"data\.train\[0\] nosuch.jsonl: does not exist \(resolved to /"),
        ("x.bin", b"1", "unknown file type; supported suffixes: .jsonl"),
        (
            "empty.jsonl",
            b"",
            "no supported file that is not empty; supported suffixes: .*, each also compressed as .gz, .bz2, .xz$",
        ),
        ("x.json", b"[1, 2", "x.json is not valid JSON"),
        ("x.json", b'{"rows": []}', "format: auto finds no format that fits: the rows have the keys rows"),
        ("x.json", b'"text"', "must contain a list of rows"),
        (
            "x.jsonl",
            b'{"question": "a", "answer": "b"}\n',
            "format: auto finds no format that fits: the rows have the keys question, answer",
        ),
        (
            "x.jsonl",
            b'{"prompt": "a", "response": "b", "text": "c"}\n',
            "format: auto is ambiguous: the rows fit completion and text",
        ),
        (
            "x.jsonl",
            b'{"prompt": "a", "response": 4}\n',
            r"x.jsonl:1 read as completion: `response` must be a text, not a number",
        ),
        (
            "x.txt",
            "größer\n".encode("latin-1"),
            "none of the first rows is readable; x.txt:1 not valid UTF-8 .*; fix these rows, or save the file as UTF-8",
        ),
        (
            "x.jsonl",
            b'{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": "b"}\n{"text": "c"}\n',
            "the rows fit completion and text; x.jsonl:3 fits text, the rows before it fit completion",
        ),
        ("x.csv", b"prompt;response\na;b\n", "the columns are separated by ';', but a .csv file needs ','"),
        ("x.csv", b"prompt\tresponse\na\tb\n", r"separated by '\\t', .*; rename the file to .tsv"),
        (
            "x.jsonl",
            b'{"conversations": [{"from": "human", "value": "a"}], "chosen": {}, "rejected": {}}\n',
            r"the rows are preference data \(columns chosen and rejected\), which method sft does not read",
        ),
        ("x.parquet", b"PAR1 no", "not a readable Parquet file"),
        (
            "x.jsonl.gz",
            gzip.compress(CONTENTS["a.jsonl"], mtime=0)[:10] + b"\xff" * 40,
            "x.jsonl.gz cannot be read",
        ),
        ("x.jsonl.xz", b"no xz", "x.jsonl.xz cannot be read"),
        ("x.csv.gz", b"no gzip", "x.csv.gz"),
    ],
)
def test_sources_that_cannot_be_used(path, content, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(path).write_bytes(content)
    with pytest.raises(DataError, match=problem):
        cut(resolve(Source(path=path), "data.train[0]"))


def test_columns_are_checked(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"q": "a", "a": "b"}\n')
    path = str(tmp_path / "x.jsonl")
    good = Source(path=path, columns={"prompt": "q", "response": "a"})
    assert resolve(good, "x").format == "completion"
    bad = Source(path=path, format="completion", columns={"promt": "q", "answer": "a"})
    with pytest.raises(
        DataError,
        match=r"columns: `answer`, `promt` are not fields of the format completion; the fields are prompt, response",
    ):
        resolve(bad, "x")


@pytest.mark.parametrize(
    ("fmt", "columns", "problem"),
    [
        ("completion", {"question": "prompt"}, r"write field: column, that is columns: \{prompt: question\}"),
        ("auto", {"question": "prompt"}, r"`question` is not a field of any format; write field: column"),
        (
            "auto",
            {"promt": "question"},
            r"columns: `promt` is not a field of any format; the fields are messages,",
        ),
        (
            "auto",
            {"prompt": "qestion", "response": "answer"},
            "the rows have no column `qestion` for the field prompt; they have question, answer; did you mean question",
        ),
        (
            "completion",
            {"response": "xyz"},
            "no column `xyz` for the field response; they have question, answer; name one",
        ),
    ],
)
def test_wrong_columns_show_those_of_the_rows(fmt, columns, problem, tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"question": "a", "answer": "b"}\n')
    with pytest.raises(DataError, match=problem):
        resolve(Source(path=str(tmp_path / "x.jsonl"), format=fmt, columns=columns), "x")


def test_preference_rows_may_be_read_with_an_explicit_format(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"question": "a", "chosen": "b", "rejected": "c"}\n')
    columns = {"prompt": "question", "response": "chosen"}
    assert resolve(Source(path=str(tmp_path / "x.jsonl"), columns=columns), "x").format == "completion"


def without_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


def test_remote_sources_without_credentials(tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    without_credentials(monkeypatch, tmp_path)
    with pytest.raises(
        DataError, match=r"^data\.train\[0\] s3://b/x\.jsonl: .*; set AWS_ACCESS_KEY_ID .*AWS_ENDPOINT_URL"
    ):
        resolve(Source(path="s3://b/x.jsonl"), "data.train[0]")
    with pytest.raises(
        DataError, match=r"s4://b/x\.jsonl: .*; protocols are, for example, s3, gs, hf, file and memory"
    ):
        resolve(Source(path="s4://b/x.jsonl"), "data.train[0]")


def test_csv_rows_of_another_width(tmp_path):
    (tmp_path / "x.csv").write_text('prompt,response\na,b\na\n"a,a","b\nb"\na,b,c\n')
    rows = read(Source(path=str(tmp_path / "x.csv")))
    assert [(n, row.reason if isinstance(row, RowError) else row["prompt"]) for _, n, row in rows] == [
        (1, "a"),
        (2, "bad_csv"),
        (3, "a,a"),
        (4, "bad_csv"),
    ]


def test_the_hub_without_network(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="hf://nobody/nothing cannot be loaded as a dataset"):
        resolve(Source(path="hf://nobody/nothing"), "x")


def test_a_dataset_with_a_loading_script_says_how_to_read_its_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "lima").mkdir(parents=True)
    (tmp_path / "owner" / "lima" / "lima.py").write_text("")
    with pytest.raises(DataError, match="scripts are no longer supported") as caught:
        resolve(Source(path="hf://owner/lima"), "x")
    assert caught.value.hint == "name a file of it: hf://datasets/owner/lima/FILE, such as train.jsonl"


def test_files_whose_server_does_not_tell_their_size_are_read() -> None:
    """Alone and beside others; none of them is cut, because its server cannot send a part."""
    content = jsonl(ROWS[:9])
    with web() as served:
        served.sizes = False
        served.files["/a.jsonl"] = content
        found = resolve(Source(path=f"{served.url}/a.jsonl"), "data.train[0]")
        (part,) = found.files
        assert (part.size, part.seekable) == (len(content), False)
        (task,) = cut(dataclasses.replace(found, files=(dataclasses.replace(part, size=1 << 40),)))
        assert [row for _, row in Reader(task[0])] == ROWS[:9]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_json_lines_in_a_json_file(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "rows.json").write_bytes(mark + jsonl(ROWS[:3]))
    (part,) = resolve(Source(path=str(tmp_path / "rows.json")), "data.train[0]").files
    assert [row for _, row in Reader(part)] == ROWS[:3]


def test_a_change_of_the_same_size_is_detected_without_etags() -> None:
    first, second = jsonl(ROWS[:9]), jsonl(ROWS[:9]).replace(b"question 3", b"question X")
    assert len(first) == len(second)
    with web() as served:

        def contents(content: bytes) -> tuple[tuple[str, str], ...]:
            served.files["/a.jsonl"] = content
            return resolve(Source(path=f"{served.url}/a.jsonl"), "data.train[0]").contents

        assert contents(first) == contents(first) != contents(second)
        served.etags = True
        told = contents(first)
        assert told != contents(second)
        assert told == contents(first)
