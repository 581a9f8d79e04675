"""What retrieval is measured on: queries, the corpus that they search, and which passages answer them.

A folder in BEIR's layout (Thakur et al. 2021, arXiv 2104.08663): corpus, queries, and judgments in qrels/. Or rows of
queries with their passages, all of which together are the corpus.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tailor.encode.formats import formats_of, get_format
from tailor.encode.readers import COMPRESSIONS, SUFFIXES, Reader
from tailor.encode.records import Instructed, Relevance, RowError
from tailor.encode.sources import find_files, resolve
from tailor.errors import DataError
from tailor.spec.data import RELEVANCE, Source
from tailor.spec.methods.gritlm import Gritlm
from tailor.spec.tasks.rows import Corpus, Questions
from tailor.store import Store

TITLE = "{title} {text}"
"""How BEIR puts a passage's title before its text."""


@dataclass(frozen=True)
class Text:
    """A query or a passage."""

    id: str
    text: str
    instruction: str | None = None


@dataclass(frozen=True)
class Collection:
    """grades: for each query what was judged, passage's number in the corpus -> grade."""

    queries: list[Text]
    corpus: list[Text]
    grades: list[dict[int, int]]

    @property
    def blank(self) -> int:
        """Passages without text. They are in the corpus, and cannot be found."""
        return sum(not passage.text for passage in self.corpus)


def read_collection(
    data: Corpus, where: str, query_instruction: str | None = None, corpus_instruction: str | None = None
) -> Collection:
    """Read it. `where`: the key, for messages. The instructions stand in place of those of the rows. DataError."""
    folder = _folder(data, where)
    found = _from_rows(data, where) if folder is None else _from_beir(folder, data, where)
    if not found.queries:
        raise DataError(f"{where} {data.path}: no query has a passage that was judged")
    if found.blank == len(found.corpus):
        raise DataError(f"{where} {data.path}: no passage of the corpus has any text")
    return Collection(
        [_with(one, query_instruction) for one in found.queries],
        [_with(one, corpus_instruction) for one in found.corpus],
        found.grades,
    )


def check_collection(data: Corpus, where: str, rows: int) -> None:
    """DataError for what `read_collection` would refuse at the files' names and their first `rows` rows."""
    folder = _folder(data, where)
    if folder is None:
        _from_rows(data, where, rows)
        return
    for name in ("corpus", "queries"):
        _texts(_file(folder, data, where, name), where, rows)
    for place, row in _rows(_file(folder, data, where, f"qrels/{data.qrels}"), where, rows):
        _judgment(row, place)


def _with(text: Text, instruction: str | None) -> Text:
    return text if instruction is None else Text(text.id, text.text, instruction or None)


def _folder(data: Corpus, where: str) -> Store | None:
    """The folder in BEIR's layout; None for a path of rows."""
    if data.path.startswith("hf://") and not data.path.startswith("hf://datasets/"):
        return None
    if _kind(posixpath.basename(data.path.rstrip("/"))) or any(char in data.path for char in "*?["):
        return None
    store = Store(data.path)
    if not store.exists():
        raise DataError(f"{where} {data.path}: it does not exist", hint="check the path")
    return store


def _kind(name: str) -> str | None:
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return SUFFIXES.get(posixpath.splitext(name.lower())[1])


def _from_beir(folder: Store, data: Corpus, where: str) -> Collection:
    corpus, passages = _texts(_file(folder, data, where, "corpus"), where)
    known, queries = _texts(_file(folder, data, where, "queries"), where)
    grades: dict[int, dict[int, int]] = {}
    file = _file(folder, data, where, f"qrels/{data.qrels}")
    for place, row in _rows(file, where):
        query, passage, grade = _judgment(row, place)
        for name, ids, kind, other in (
            (query, queries, "query", "queries"),
            (passage, passages, "passage", "corpus"),
        ):
            if name not in ids:
                raise DataError(
                    f"{place}: no {kind} {name!r} in the {other} of {data.path}",
                    hint="qrels, queries and corpus must be of one collection",
                )
        grades.setdefault(queries[query], {})[passages[passage]] = grade
    asked = sorted(grades)[: data.limit]
    for at in asked:
        if not known[at].text:
            raise DataError(f"{where} {data.path}: the query {known[at].id!r} has no text")
    return Collection([known[at] for at in asked], corpus, [grades[at] for at in asked])


def _from_rows(data: Corpus, where: str, most: int | None = None) -> Collection:
    """Every row is a query; the passages of all rows are the corpus, each once. A row's positives are relevant to it."""
    found = resolve(Source(path=data.path), where, Gritlm(name="gritlm"))
    fmt = get_format(found.format)
    if fmt.rows != RELEVANCE:
        raise DataError(
            f"{found.context}: the rows are {found.format}, and have no passages",
            hint=f"give rows of one of the formats {', '.join(formats_of((RELEVANCE,)))}, or a folder in BEIR's layout",
        )
    numbers: dict[Instructed, int] = {}
    corpus: list[Text] = []
    queries: list[Text] = []
    grades: list[dict[int, int]] = []
    for place, row in _rows(data.path, where, most):
        try:
            record = fmt.record(row, {})
        except RowError as error:
            raise DataError(f"{place}: {error.detail or error.reason}") from None
        assert isinstance(record, Relevance)
        judged: dict[int, int] = {}
        for grade, passages in ((1, record.positives), (0, record.negatives)):
            for passage in passages:
                number = numbers.setdefault(passage, len(corpus))
                if number == len(corpus):
                    corpus.append(Text(f"{place}:{len(judged)}", passage[1], passage[0]))
                judged.setdefault(number, grade)
        queries.append(Text(place, record.query[1], record.query[0]))
        grades.append(judged)
    return Collection(queries[: data.limit], corpus, grades[: data.limit])


def _texts(file: str, where: str, most: int | None = None) -> tuple[list[Text], dict[str, int]]:
    """The texts of a file, and the number of each by its id."""
    texts, numbers = [], {}
    for place, row in _rows(file, where, most):
        name, text, title = row.get("_id", row.get("id")), row.get("text"), row.get("title") or ""
        if not isinstance(name, (str, int)) or not isinstance(text, str) or not isinstance(title, str):
            raise DataError(f"{place}: a row must have `_id` and `text`, and may have `title`")
        if str(name) in numbers:
            raise DataError(f"{place}: the id {str(name)!r} is there twice")
        numbers[str(name)] = len(texts)
        texts.append(Text(str(name), _text(TITLE.format(title=title, text=text).strip())))
    return texts, numbers


def _text(value: str) -> str:
    """A text as it is, and nothing for one of spaces alone."""
    return value if value.strip() else ""


def _judgment(row: Mapping[str, Any], place: str) -> tuple[str, str, int]:
    try:
        return str(row["query-id"]), str(row["corpus-id"]), int(row["score"])
    except KeyError:
        raise DataError(
            f"{place}: no judgment: its columns are {', '.join(map(str, row))}",
            hint="the file's first line must be `query-id`, `corpus-id` and `score`, with tabs between them",
        ) from None
    except (TypeError, ValueError):
        raise DataError(f"{place}: the score {row['score']!r} is no whole number") from None


def _file(folder: Store, data: Corpus, where: str, wanted: str) -> str:
    """The URL of a collection's file, whichever of the readable kinds it is."""
    below, _, stem = wanted.rpartition("/")
    names = [name for name in folder.names(below) if _kind(name)]
    stems = {_stem(name): name for name in names}
    if stem not in stems:
        there = f"; there are {', '.join(sorted(stems))}" if below and stems else ""
        raise DataError(
            f"{where} {data.path}: no {wanted}{'.tsv' if below else '.jsonl'} in it{there}",
            hint=f"name one of them as {where}.qrels"
            if there
            else "the folder must hold corpus.jsonl, queries.jsonl and qrels/, or name a file of rows",
        )
    base = data.path.rstrip("/")
    return posixpath.join(base, below, stems[stem]) if below else posixpath.join(base, stems[stem])


def _stem(name: str) -> str:
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return posixpath.splitext(name)[0]


def _rows(path: str, where: str, most: int | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file:row, row) of each row, or of the first `most`. DataError for the first one that cannot be read, and for a file without any."""
    count = 0
    for part in find_files(Questions(path=path), where):
        for number, row in Reader(part):
            if count == most:
                return
            place = f"{part.label}:{number}"
            if isinstance(row, RowError):
                raise DataError(f"{place}: {row.detail or row.reason}")
            if not isinstance(row, Mapping):
                raise DataError(f"{place}: a row must be an object")
            count += 1
            yield place, row
    if not count:
        raise DataError(f"{path}: no rows")
