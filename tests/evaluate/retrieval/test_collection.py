"""Collections in BEIR's layout and as rows, and their exact error messages."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tailor.errors import DataError
from tailor.evaluate.retrieval.collection import Collection, Text, read_collection
from tailor.evaluate.retrieval.search import Search
from tailor.spec.tasks.rows import Corpus
from tailor.store import Store
from tests.helpers.collections import JUDGED, beir_folder, pair_rows, passages, write_jsonl


def read(path: Path | str, **settings: object) -> object:
    return read_collection(Corpus(path=str(path), **settings), "tasks[0].data")  # type: ignore[arg-type]


def test_beirs_layout(tmp_path: Path) -> None:
    found = read_collection(Corpus(path=str(beir_folder(tmp_path))), "data", query_instruction="Find it.")
    assert [query.id for query in found.queries] == ["q1", "q2", "q3", "q4"]
    assert found.queries[1] == Text("q2", "a needle for linen", "Find it.")
    assert len(found.corpus) == 40
    titled, plain = passages()[1], passages()[3]
    assert found.corpus[1] == Text("d1", f"{titled['title']} {titled['text']}")
    assert found.corpus[3] == Text("d3", plain["text"])
    assert found.grades == [{1: 2, 5: 1}, {7: 1}, {3: 0, 11: 1}, {2: 1}]
    assert [query.id for query in read(tmp_path, limit=2).queries] == ["q1", "q2"]  # type: ignore[attr-defined]


def test_only_judged_queries_are_searched(tmp_path: Path) -> None:
    found = read(beir_folder(tmp_path, [("q3", "d1", 1)], split="dev"), qrels="dev")
    assert [query.id for query in found.queries] == ["q3"]  # type: ignore[attr-defined]


def test_any_kind_of_file_and_any_store(tmp_path: Path) -> None:
    folder = beir_folder(tmp_path)
    expected = read(folder)
    text = (folder / "corpus.jsonl").read_bytes()
    remote = Store("memory://collections/beir")
    for name in ("queries.jsonl", "qrels/test.tsv"):
        remote.write_bytes(name, (folder / name).read_bytes())
    remote.write_bytes("corpus.jsonl.gz", gzip.compress(text))
    assert read("memory://collections/beir") == expected


def test_rows_make_a_corpus(tmp_path: Path) -> None:
    found = read_collection(
        Corpus(path=str(write_jsonl(tmp_path / "rows.jsonl", pair_rows("Represent:")))), "data"
    )
    assert len(found.queries) == 12
    assert found.queries[2].text == "coat?"
    assert {one.instruction for one in (*found.queries, *found.corpus)} == {"Represent:"}
    texts = [one.text for one in found.corpus]
    assert len(set(texts)) == len(texts) == 12 * 2 + 1, "each passage is there once"
    relevant = [{texts[at] for at, grade in grades.items() if grade} for grades in found.grades]
    assert relevant[2] == {"of coat", "coat!"}
    assert found.grades[2][texts.index("of wind")] == 0


@pytest.mark.parametrize(
    "row",
    [
        {"query": "wool?", "pos": ["of wool"], "neg": ["of linen"], "prompt": "Represent:"},
        {"query_id": "1", "query": "wool?", "positive_passages": [{"docid": "2", "title": "of", "text": "wool"}],
         "negative_passages": [{"docid": "3", "title": "", "text": "of linen"}]},
        {"anchor": "wool?", "positive": "of wool", "negative": "of linen"},
    ],
)  # fmt: skip
def test_rows_of_other_programs(tmp_path: Path, row: dict[str, object]) -> None:
    found = read_collection(Corpus(path=str(write_jsonl(tmp_path / "rows.jsonl", [row]))), "data")
    assert [one.text for one in found.queries] == ["wool?"]
    assert [one.text for one in found.corpus] == ["of wool", "of linen"]
    assert found.grades == [{0: 1, 1: 0}]
    assert found.queries[0].instruction == row.get("prompt")


def test_a_blank_passage_is_counted(tmp_path: Path) -> None:
    folder = beir_folder(tmp_path)
    write_jsonl(folder / "corpus.jsonl", [*passages(), {"_id": "blank", "title": " ", "text": ""}])
    assert read(folder).blank == 1  # type: ignore[attr-defined]


def _qrels(*rows: str) -> Callable[[Path], object]:
    return lambda place: (place / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n")


HEAD = "query-id\tcorpus-id\tscore"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.tsv", "q1\td1\t2\nq1\td5\t1\nq2\td7\t1\nq3\td3\t0\nq3\td11\t1\nq4\td2\t1\n"),
        ("test.tsv", "score\tcorpus-id\tquery-id\n2.0\td1\tq1\n1.0\td5\tq1\n1\td7\tq2\n0.0\td3\tq3\n1\td11\tq3\n1\td2\tq4"),
        ("test.txt", "q1 0 d1 2\nq1 0 d1 2\nq1 0 d5 1\n\nq2 Q0 d7 1\nq3 0 d3 0\nq3 0 d11 1\nq4 0 d2 1\n"),
        ("test.qrels", "q1 0  d1 2\nq1\t0\td5\t1\nq2 0 d7 1\r\nq3 0 d3 0\nq3 0 d11 1\nq4 0 d2 1\n"),
        ("test.tsv", "q1 0 d1 2\nq1 0 d5 1\nq2 0 d7 1\nq3 0 d3 0\nq3 0 d11 1\nq4 0 d2 1\n"),
        ("test.csv", 'query-id,corpus-id,score\nq1,"d1",2\nq1,d5,1\nq2,d7,1\nq3,d3,0\nq3,d11,1\nq4,d2,1\n'),
        ("test.json", '{"query-id": "q1", "corpus-id": "d1", "score": 2.0}\n{"query-id": "q1", "corpus-id": "d5", "score": "1"}\n'),
    ],
)  # fmt: skip
def test_judgments_of_other_programs(tmp_path: Path, name: str, content: str) -> None:
    folder = beir_folder(tmp_path)
    expected = read(folder)
    (folder / "qrels/test.tsv").unlink()
    (folder / "qrels" / name).write_text(content)
    found = read(folder)
    if name == "test.json":
        assert found.grades == expected.grades[:1]  # type: ignore[attr-defined]
    else:
        assert found == expected


def test_judged_passages_that_are_missing_count_as_not_found(tmp_path: Path) -> None:
    folder = beir_folder(tmp_path, [("q1", "d1", 1), ("q1", "x", 2), ("q2", "x", 1)])
    found = read(folder, allow_missing=True)
    assert isinstance(found, Collection)
    assert (found.missing, found.passages, found.blank) == (1, 40, 0)
    search = Search(found)
    search.add_queries([0, 1], np.eye(2, dtype=np.float32))
    search.add_passages([1, 2], np.eye(2, dtype=np.float32))  # d1 is first for q1
    first, second = (one.figures for one in search.results())
    assert first["recall@1"] == 0.5, "trec_eval: one of two relevant passages"
    assert first["ndcg@10"] == pytest.approx(1 / (2 + 1 / np.log2(3)))
    assert second["recall@100"] == 0
    assert read(beir_folder(tmp_path / "all", JUDGED), allow_missing=True).missing == 0  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="the corpus has none of the 2 judged passages"):
        read(beir_folder(tmp_path / "none", [("q1", "x", 1), ("q1", "y", 1)]), allow_missing=True)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (
            _qrels(HEAD, "q1\td1\t1", "q9\td1\t1"),
            "PLACE/qrels/test.tsv:3: no query 'q9' in the queries of PLACE; qrels, queries and corpus must belong to the same collection",
        ),
        (
            _qrels(HEAD, "q1\tx\t1"),
            (
                "PLACE/qrels/test.tsv:2: no passage 'x' in the corpus of PLACE; qrels, queries and corpus must belong to the same "
                "collection; tasks[0].data.allow_missing: true counts such passages as not found, as trec_eval does"
            ),
        ),
        (_qrels(HEAD, "q1\td1\t0.5"), "PLACE/qrels/test.tsv:2: the score '0.5' is not an integer"),
        (
            _qrels("query\tpassage\tgrade", "q1\td2\t1"),
            (
                "PLACE/qrels/test.tsv:1: not a relevance judgment: its columns are query, passage, grade; write `query-id`, "
                "`corpus-id` and `score` in the first line, or no header and either three columns (query, passage, score) or "
                "TREC's four (query, 0, passage, score)"
            ),
        ),
        (
            _qrels("", HEAD, "q1\td1\t2", "q2\td1\t2", "", "q1\td1\t0"),
            (
                "PLACE/qrels/test.tsv:6: query 'q1' and passage 'd1' have the score 0, but 2 in PLACE/qrels/test.tsv:3; "
                "remove one of the two rows"
            ),
        ),
        (
            _qrels(HEAD, "q1\td1\t1", "q1\td2\t1\t1"),
            "PLACE/qrels/test.tsv:3: 4 columns, and the header has 3; separate the columns by one tab",
        ),
        (
            _qrels("q1\td1\t1", "q1\td2"),
            "PLACE/qrels/test.tsv:2: not a relevance judgment: its columns are q1, d2;",
        ),
        (_qrels(HEAD, "q1\td1\tnan"), "PLACE/qrels/test.tsv:2: the score 'nan' is not an integer"),
        (_qrels(HEAD, "q1\t\t1"), "PLACE/qrels/test.tsv:2: `corpus-id` must be an id, not ''"),
        (_qrels(HEAD), "PLACE/qrels/test.tsv: no rows"),
        (
            lambda place: (place / "corpus.jsonl").write_text(""),
            "tasks[0].data PLACE/corpus.jsonl: no supported file that is not empty; supported suffixes: ",
        ),
        (
            lambda place: write_jsonl(place / "corpus.jsonl", [{"_id": "d1", "text": " "}]),
            "PLACE/qrels/test.tsv:3: no passage 'd5'",
        ),
        (
            lambda place: write_jsonl(
                place / "corpus.jsonl", [{"_id": "d1", "text": "a"}, {"_id": "d1", "text": "b"}]
            ),
            "PLACE/corpus.jsonl:2: duplicate id 'd1'",
        ),
        (
            lambda place: write_jsonl(place / "corpus.jsonl", [{"_id": "d1"}]),
            "PLACE/corpus.jsonl:1: a row must have `_id` and `text`, and may have `title`",
        ),
        (
            lambda place: (place / "corpus.jsonl").unlink(),
            (
                "tasks[0].data PLACE: the folder has no corpus.jsonl; a BEIR folder has corpus.jsonl, queries.jsonl and qrels/; "
                "or give a file of rows"
            ),
        ),
        (
            lambda place: (place / "qrels/test.tsv").rename(place / "qrels/dev.tsv"),
            "tasks[0].data PLACE: the folder has no qrels/test.tsv; it has dev; set tasks[0].data.qrels to one of them",
        ),
    ],
)
def test_errors_are_reported(tmp_path: Path, spoil: Callable[[Path], object], text: str) -> None:
    folder = beir_folder(tmp_path)
    spoil(folder)
    with pytest.raises(DataError) as caught:
        read(folder)
    assert str(caught.value).replace(str(tmp_path), "PLACE").startswith(text)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([{"query": "a", "pos": ["b"]}, {"query": "a"}], "PLACE:2: missing key `pos`"),
        ([{"query": "a", "pos": ["b"]}, {"query": " ", "pos": ["b"]}], "PLACE:2: the query is empty"),
        (
            [{"query": "a"}],
            "tasks[0].data PLACE: format: auto finds no format that fits: the rows have the keys query",
        ),
        (
            [{"prompt": "a", "response": "b"}],
            (
                "tasks[0].data PLACE: rows of the format completion have no passages; use rows of one of the formats gritlm, "
                "flagembedding, tevatron, sentence_transformers, or a folder in BEIR's layout"
            ),
        ),
    ],
)
def test_errors_in_rows_are_reported(tmp_path: Path, rows: list[object], text: str) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).replace(str(path), "PLACE").startswith(text)
