"""Retrieval collections: queries, a corpus, and relevance judgments (qrels).

A collection is a folder in BEIR's layout (Thakur et al. 2021, arXiv 2104.08663) with corpus, queries and qrels/. Or it is
rows of queries with their passages; the corpus is then the passages of all rows.

A row id is `file:row`, for error messages. A key is the recipe key of the data, such as `tasks[0].data`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tailor.encode.formats import get_format
from tailor.encode.readers import COMPRESSIONS, SUFFIXES, FileRange, Reader
from tailor.encode.records import Instructed, Relevance, RowError
from tailor.encode.sources import find_files, resolve_queries
from tailor.errors import DataError
from tailor.evaluate.retrieval.qrels import DELIMITERS, read_judgments
from tailor.spec.tasks.rows import Corpus, Questions
from tailor.store import Store

TITLE = "{title} {text}"
"""BEIR's way to join a passage's title and text."""
QRELS_SUFFIXES = {**SUFFIXES, ".qrels": "text", ".qrel": "text"}

SMALL = 16 << 20
"""Bytes of the texts of a collection that is read within a second."""


@dataclass(frozen=True)
class Text:
    """A query or a passage."""

    id: str
    text: str
    instruction: str | None = None


@dataclass(frozen=True)
class Collection:
    """Queries, corpus and judgments. grades: for each query, index of a judged passage in the corpus -> grade."""

    queries: list[Text]
    corpus: list[Text]
    """The passages, then one without text for each judged passage that is missing in the corpus."""
    grades: list[dict[int, int]]
    missing: int = 0
    """Number of judged passages that the corpus does not have. They are never retrieved, and count as not found."""

    @property
    def blank(self) -> int:
        """Number of passages without text. They stay in the corpus, but are never retrieved."""
        return sum(not passage.text for passage in self.corpus) - self.missing

    @property
    def passages(self) -> int:
        """Number of passages of the corpus."""
        return len(self.corpus) - self.missing


def read_collection(
    data: Corpus, key: str, query_instruction: str | None = None, corpus_instruction: str | None = None
) -> Collection:
    """Read a collection. The instructions, if given, replace those of the rows.

    DataError when a file is missing, a row is invalid, or no query has a judgment.
    """
    folder = _folder(data, key)
    found = _from_rows(data, key) if folder is None else _from_beir(folder, data, key)
    if not found.queries:
        raise DataError(f"{key} {data.path}: no query has a judged passage")
    if found.blank == found.passages:
        raise DataError(f"{key} {data.path}: all passages of the corpus are empty")
    return Collection(
        [_with(one, query_instruction) for one in found.queries],
        [_with(one, corpus_instruction) for one in found.corpus],
        found.grades,
        found.missing,
    )


def check_collection(data: Corpus, key: str, rows: int) -> None:
    """Read a collection of up to `SMALL` bytes; of a larger one, check the file names and the first `rows` rows of each file.

    DataError as in `read_collection`.
    """
    folder = _folder(data, key)
    paths = (
        [data.path] if folder is None else [_file(folder, data, key, name) for name in ("corpus", "queries")]
    )
    if sum(part.size for path in paths for part in find_files(Questions(path=path), key)) <= SMALL:
        read_collection(data, key)
        return
    if folder is None:
        _from_rows(data, key, rows)
        return
    for name in ("corpus", "queries"):
        _texts(_file(folder, data, key, name), key, rows)
    for _ in read_judgments(_qrels(folder, data, key), rows):
        pass


def _with(text: Text, instruction: str | None) -> Text:
    return text if instruction is None else Text(text.id, text.text, instruction or None)


def _folder(data: Corpus, key: str) -> Store | None:
    """The folder in BEIR's layout; None when the path names files of rows. DataError when it does not exist."""
    if data.path.startswith("hf://") and not data.path.startswith("hf://datasets/"):
        return None
    if _kind(posixpath.basename(data.path.rstrip("/"))) or any(char in data.path for char in "*?["):
        return None
    store = Store(data.path)
    if not store.exists():
        raise DataError(f"{key} {data.path}: it does not exist", hint="check the path")
    return store


def is_folder(data: Corpus, key: str) -> bool:
    """Whether a collection is a folder in BEIR's layout. DataError when it does not exist."""
    return _folder(data, key) is not None


def file_kind(path: str) -> str | None:
    """How a file of judgments or results is read, by its suffix; None if the suffix is unknown."""
    return _kind(posixpath.basename(path), {**QRELS_SUFFIXES, ".run": "text", ".trec": "text"})


def _kind(name: str, suffixes: Mapping[str, str] = SUFFIXES) -> str | None:
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return suffixes.get(posixpath.splitext(name.lower())[1])


def _from_beir(folder: Store, data: Corpus, key: str) -> Collection:
    corpus, passages = _texts(_file(folder, data, key, "corpus"), key)
    known, queries = _texts(_file(folder, data, key, "queries"), key)
    grades: dict[int, dict[int, int]] = {}
    present = len(corpus)
    for judged in read_judgments(_qrels(folder, data, key)):
        if judged.query not in queries:
            raise DataError(
                f"{judged.location}: no query {judged.query!r} in the queries of {data.path}",
                hint="qrels, queries and corpus must belong to the same collection",
            )
        if judged.passage not in passages:
            if not data.allow_missing:
                raise DataError(
                    f"{judged.location}: no passage {judged.passage!r} in the corpus of {data.path}",
                    hint=f"qrels, queries and corpus must belong to the same collection; {key}.allow_missing: true counts such "
                    "passages as not found, as trec_eval does",
                )
            passages[judged.passage] = len(corpus)
            corpus.append(Text(judged.passage, ""))
        grades.setdefault(queries[judged.query], {})[passages[judged.passage]] = judged.grade
    if grades and all(at >= present for of_query in grades.values() for at in of_query):
        raise DataError(
            f"{key} {data.path}: the corpus has none of the {len(corpus) - present:,} judged passages",
            hint="qrels, queries and corpus must belong to the same collection",
        )
    judged_queries = sorted(grades)[: data.limit]
    for at in judged_queries:
        if not known[at].text:
            raise DataError(f"{key} {data.path}: the query {known[at].id!r} has no text")
    kept = [grades[at] for at in judged_queries]
    return Collection([known[at] for at in judged_queries], corpus, kept, len(corpus) - present)


def _from_rows(data: Corpus, key: str, max_rows: int | None = None) -> Collection:
    """A collection from rows. Each row is a query; its positives are relevant (grade 1), its negatives are not (grade 0).

    The corpus is the distinct passages of all rows.
    """
    found = resolve_queries(data.path, key, other=", or a folder in BEIR's layout")
    fmt = get_format(found.format)
    numbers: dict[Instructed, int] = {}
    corpus: list[Text] = []
    queries: list[Text] = []
    grades: list[dict[int, int]] = []
    for row_id, row in _rows(data.path, key, max_rows):
        try:
            record = fmt.record(row, {})
        except RowError as error:
            raise DataError(f"{row_id}: {error.detail or error.reason}") from None
        assert isinstance(record, Relevance)
        judged: dict[int, int] = {}
        for grade, passages in ((1, record.positives), (0, record.negatives)):
            for passage in passages:
                number = numbers.setdefault(passage, len(corpus))
                if number == len(corpus):
                    corpus.append(Text(f"{row_id}:{len(judged)}", passage[1], passage[0]))
                judged.setdefault(number, grade)
        queries.append(Text(row_id, record.query[1], record.query[0]))
        grades.append(judged)
    return Collection(queries[: data.limit], corpus, grades[: data.limit])


def _texts(file: str, key: str, max_rows: int | None = None) -> tuple[list[Text], dict[str, int]]:
    """The texts of a file, and the index of each by its id. DataError for an invalid row or a duplicate id."""
    texts, numbers = [], {}
    for row_id, row in _rows(file, key, max_rows):
        name, text, title = row.get("_id", row.get("id")), row.get("text"), row.get("title") or ""
        if not isinstance(name, (str, int)) or not isinstance(text, str) or not isinstance(title, str):
            raise DataError(f"{row_id}: a row must have `_id` and `text`, and may have `title`")
        if str(name) in numbers:
            raise DataError(f"{row_id}: duplicate id {str(name)!r}")
        numbers[str(name)] = len(texts)
        texts.append(Text(str(name), _text(TITLE.format(title=title, text=text).strip())))
    return texts, numbers


def _text(value: str) -> str:
    """The text, or an empty one if it is only white space."""
    return value if value.strip() else ""


def _qrels(folder: Store, data: Corpus, key: str) -> FileRange:
    url = _file(folder, data, key, f"qrels/{data.qrels}")
    kind = _kind(posixpath.basename(url), QRELS_SUFFIXES)
    assert kind is not None
    return FileRange(url, url, kind) if kind in DELIMITERS else find_files(Questions(path=url), key)[0]


def _file(folder: Store, data: Corpus, key: str, name: str) -> str:
    """The URL of a collection's file, such as `qrels/test`, with any readable suffix. DataError when there is none."""
    below, _, stem = name.rpartition("/")
    names = [name for name in folder.names(below) if _kind(name, QRELS_SUFFIXES if below else SUFFIXES)]
    stems = {_stem(name): name for name in names}
    if stem not in stems:
        existing = f"; it has {', '.join(sorted(stems))}" if below and stems else ""
        raise DataError(
            f"{key} {data.path}: the folder has no {name}{'.tsv' if below else '.jsonl'}{existing}",
            hint=f"set {key}.qrels to one of them"
            if existing
            else "a BEIR folder has corpus.jsonl, queries.jsonl and qrels/; or give a file of rows",
        )
    base = data.path.rstrip("/")
    return posixpath.join(base, below, stems[stem]) if below else posixpath.join(base, stems[stem])


def _stem(name: str) -> str:
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return posixpath.splitext(name)[0]


def _rows(path: str, key: str, max_rows: int | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(row id, row) of each row, or of the first `max_rows`. DataError for a row that cannot be read, and when there is none."""
    count = 0
    for part in find_files(Questions(path=path), key):
        for number, row in Reader(part):
            if count == max_rows:
                return
            row_id = f"{part.label}:{number}"
            if isinstance(row, RowError):
                raise DataError(f"{row_id}: {row.detail or row.reason}")
            if not isinstance(row, Mapping):
                raise DataError(f"{row_id}: a row must be an object")
            count += 1
            yield row_id, row
    if not count:
        raise DataError(f"{path}: no rows")
