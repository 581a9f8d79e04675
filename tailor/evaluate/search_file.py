"""`tailor search`: the passages of a file that are nearest to a query, by embeddings of one model."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tailor.errors import DataError
from tailor.evaluate.embed_file import (
    ABOUT,
    EMBEDDING,
    ROW,
    Request,
    find_input,
    is_own,
    read_batches,
    scan_input,
    vectors_of,
)
from tailor.evaluate.retrieval.embedders import TextEmbedder
from tailor.evaluate.retrieval.precision import Coding
from tailor.evaluate.retrieval.ranking import TopK
from tailor.store import Store


@dataclass(frozen=True)
class Hit:
    """A passage that was found. row: its row in the input, from 1. text: its text, or the kept columns of a file of embeddings."""

    row: int
    score: float
    text: str


class Passages:
    """The embeddings of all passages, in memory. vectors: float32[P, dimension]."""

    def __init__(self, vectors: np.ndarray, texts: list[str], rows: list[int]) -> None:
        self._vectors, self._texts, self._rows = vectors, texts, rows

    def __len__(self) -> int:
        return len(self._rows)

    def search(self, embedder: TextEmbedder, query: str, instruction: str | None, count: int) -> list[Hit]:
        """The `count` nearest passages, best first; equal scores in the order of the rows. DataError for an empty query."""
        if not query.strip():
            raise DataError("the query is empty")
        vector, _ = embedder([query], instruction, self.dimension)  # [1, dimension]
        return self.nearest(vector, count)

    @property
    def dimension(self) -> int:
        return int(self._vectors.shape[1])

    def nearest(self, vector: np.ndarray, count: int) -> list[Hit]:
        """The `count` nearest passages to an embedding, [1, dimension], as `search` finds them."""
        top = TopK(vector, count)
        top.add(np.arange(len(self)), self._vectors)
        ((found, scores),) = top.ranked()
        return [
            Hit(self._rows[at], float(score), self._texts[at])
            for at, score in zip(found.tolist(), scores.tolist(), strict=True)
        ]


def check_corpus(request: Request) -> None:
    """DataError for rows that cannot be embedded, and for a column that no row has."""
    if _own_file(request.source) is None:
        scan_input(find_input(request), request)


def open_passages(
    request: Request, model: str, embedder: TextEmbedder, progress: Callable[[int], None]
) -> Passages:
    """The passages of a file of embeddings that `tailor embed` wrote, or of rows, which are embedded now.

    model: URL of the model. progress: called with the number of passages embedded. DataError for embeddings of another model.
    """
    if (own := _own_file(request.source)) is not None:
        return _written(*own, request, model)
    texts: list[str] = []
    vectors: list[np.ndarray] = []
    for batch in read_batches(find_input(request), request):
        texts += batch.texts
        vectors.append(embedder(batch.texts, request.instruction, request.dimension)[0])
        progress(len(texts))
    return Passages(np.concatenate(vectors), texts, list(range(1, len(texts) + 1)))


def _own_file(source: str) -> tuple[Store, str] | None:
    """The folder and name of a file that `tailor embed` wrote; None for other inputs."""
    if not source.endswith(".parquet"):
        return None
    folder, name = posixpath.split(Store(source).url)
    store = Store(folder)
    return (store, name) if store.is_file(name) and is_own(store, name) else None


@dataclass(frozen=True)
class Written:
    """A file of embeddings that `tailor embed` wrote, with the texts that were embedded."""

    passages: Passages
    about: dict[str, Any]
    """What `tailor embed` stored with the embeddings."""
    folder: Store
    name: str


def open_written(source: str, model: str) -> Written | None:
    """A file of embeddings with the texts that were embedded; None for other files.

    DataError for embeddings of another model, and if the texts were not kept.
    """
    if (own := _own_file(source)) is None:
        return None
    table, about = _table(*own, source, model)
    if missing := [column for column in about["columns"] if column not in table.column_names]:
        raise DataError(
            f"{source} has no column {missing[0]}, which was embedded",
            hint=f"embed the corpus again with {' '.join(f'--keep {column}' for column in about['columns'])}",
        )
    texts = [
        " ".join(row[column] for column in about["columns"] if row.get(column)) for row in table.to_pylist()
    ]
    return Written(_passages(table, texts), about, *own)


def _written(store: Store, name: str, request: Request, model: str) -> Passages:
    table, _ = _table(store, name, request.source, model)
    kept = [column for column in table.column_names if column not in (ROW, EMBEDDING)]
    texts = [" ".join(str(row[column]) for column in kept) for row in table.select(kept).to_pylist()]
    return _passages(table, texts or [""] * len(table))


def _table(store: Store, name: str, source: str, model: str) -> tuple[pa.Table, dict[str, Any]]:
    with store.open(name) as stream:
        table = pq.read_table(stream)
    about = json.loads(table.schema.metadata[ABOUT])
    if about["model"] != model:
        raise DataError(
            f"{source} has embeddings of {about['model']}, not of {model}",
            hint="embed the corpus with this model, or search with the other one",
        )
    return table, about


def _passages(table: pa.Table, texts: list[str]) -> Passages:
    about = json.loads(table.schema.metadata[ABOUT])
    coding, stored = Coding.of(about), vectors_of(table)
    vectors = stored.astype(np.float32) if coding is None else coding.decode(stored, about["dimension"])
    return Passages(vectors, texts, table.column(ROW).to_pylist())
