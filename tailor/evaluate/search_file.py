"""`tailor search`: the passages of a file that are nearest to a query, by embeddings of one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tailor.errors import DataError
from tailor.evaluate.embed_file import (
    Request,
    find_input,
    read_batches,
    scan_input,
)
from tailor.evaluate.models import EvaluatedModel
from tailor.evaluate.retrieval.embedders import TextEmbedder
from tailor.evaluate.retrieval.ranking import TopK
from tailor.evaluate.written_embeddings import EMBEDDING, ROW, WrittenEmbeddings, find_written


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
    if find_written(request.source) is None:
        scan_input(find_input(request), request)


def open_passages(
    request: Request, model: EvaluatedModel, embedder: TextEmbedder, progress: Callable[[int], None]
) -> Passages:
    """The passages of a file of embeddings that `tailor embed` wrote, or of rows, which are embedded now.

    progress: called with the number of passages embedded. DataError for embeddings of another model.
    """
    if (written := find_written(request.source)) is not None:
        written.require_model(model)
        table = written.table()
        kept = [column for column in table.column_names if column not in (ROW, EMBEDDING)]
        joined = [" ".join(str(row[column]) for column in kept) for row in table.select(kept).to_pylist()]
        return _passages(written, table, joined or [""] * len(table))
    texts: list[str] = []
    vectors: list[np.ndarray] = []
    for batch in read_batches(find_input(request), request):
        texts += batch.texts
        vectors.append(embedder(batch.texts, request.instruction, request.dimension)[0])
        progress(len(texts))
    return Passages(np.concatenate(vectors), texts, list(range(1, len(texts) + 1)))


@dataclass(frozen=True)
class Index:
    """A file of embeddings that `tailor embed` wrote, with the texts that were embedded."""

    passages: Passages
    written: WrittenEmbeddings


def open_written(source: str, model: EvaluatedModel) -> Index | None:
    """A file of embeddings with the texts that were embedded; None for other files.

    DataError for embeddings of another model, and if the texts were not kept.
    """
    if (written := find_written(source)) is None:
        return None
    written.require_model(model)
    table, columns = written.table(), written.about["columns"]
    if missing := [column for column in columns if column not in table.column_names]:
        raise DataError(
            f"{source} has no column {missing[0]}, which was embedded",
            hint=f"embed the corpus again with {' '.join(f'--keep {column}' for column in columns)}",
        )
    texts = [" ".join(str(row[column]) for column in columns if row[column]) for row in table.to_pylist()]
    return Index(_passages(written, table, texts), written)


def _passages(written: WrittenEmbeddings, table: pa.Table, texts: list[str]) -> Passages:
    return Passages(written.vectors(table), texts, table.column(ROW).to_pylist())
