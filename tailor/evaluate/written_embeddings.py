"""Reading the Parquet files that `tailor embed` wrote, of which everything is checked before it is used."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import NotRequired, TypedDict  # pydantic needs this TypedDict before Python 3.12

from tailor.errors import DataError
from tailor.evaluate.models import EvaluatedModel, identity_hash
from tailor.evaluate.retrieval.precision import Coding, Quantized
from tailor.store import JsonFile, Store
from tailor.store.json_files import Number, Positive

ABOUT = b"tailor"
"""Key of the file's metadata."""
ROW, EMBEDDING = "row", "embedding"


class About(TypedDict):
    """What `tailor embed` stores with the embeddings, as JSON in the file's metadata."""

    model: str
    """Its URL."""
    model_hash: NotRequired[str]
    """Hash of the model's files; older files do not have it."""
    instruction: str | None
    columns: list[str]
    """Columns of the input that were embedded."""
    key_values: NotRequired[str]
    """Identity of the key-values beside the file."""
    dtype: NotRequired[Quantized]
    dimension: NotRequired[Positive]
    ranges: NotRequired[list[list[Number]]]


_REPEAT = "embed the input again"
ABOUT_FILE = JsonFile(About, _REPEAT)


@dataclass(frozen=True)
class WrittenEmbeddings:
    """A file that `tailor embed` wrote. source: its name in messages. coding: None for plain numbers."""

    source: str
    folder: Store
    name: str
    about: Mapping[str, Any]
    coding: Coding | None

    def require_model(self, model: EvaluatedModel) -> None:
        """DataError if the embeddings are of another model, or of this one before its files changed."""
        url, written = model.ref.url, self.about["model"]
        known = self.about.get("model_hash")
        if written == url if known is None else known == identity_hash(model):
            return
        if written != url:
            raise DataError(
                f"{self.source} has embeddings of {written}, not of {url}",
                hint="embed the input with this model, or use the other one",
            )
        raise DataError(f"{url} has changed since {self.source} was written", hint=_REPEAT)

    def table(self) -> pa.Table:
        """All rows. DataError when there are none, or the columns that `tailor embed` wrote are damaged."""
        try:
            with self.folder.open(self.name) as stream:
                table = pq.read_table(stream)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(str(error)) from None
        for column, fits in ((ROW, pa.types.is_int64), (EMBEDDING, pa.types.is_fixed_size_list)):
            if column not in table.column_names or not fits(table.schema.field(column).type):
                raise self._damaged(f"it has no column {column} of the type that `tailor embed` writes")
            if table.column(column).null_count:
                raise self._damaged(f"its column {column} has rows without a value")
        if not len(table):
            raise DataError(f"{self.source} has no rows", hint=_REPEAT)
        if pa.compute.min(table.column(ROW)).as_py() < 1:
            raise self._damaged(f"its column {ROW} has numbers below 1")
        return table

    def vectors(self, table: pa.Table) -> np.ndarray:
        """float32[n, E]: the embeddings of the rows. DataError for NaN, infinity and a wrong size."""
        stored = vectors_of(table)
        if self.coding is None:
            found = stored.astype(np.float32)
        elif stored.shape[1] != self.coding.width(dimension := self.about.get("dimension", 0)):
            raise self._damaged(f"its embeddings do not have {dimension} dimensions")
        else:
            found = self.coding.decode(stored, dimension)
        if not np.isfinite(found).all():
            raise self._damaged("it has embeddings that are NaN or infinite")
        return found

    def _damaged(self, what: str) -> DataError:
        return DataError(f"{self.source} is damaged: {' '.join(what.split())}", hint=_REPEAT)


def find_written(source: str) -> WrittenEmbeddings | None:
    """The file, a path or fsspec URL, if `tailor embed` wrote it; None for other files. StoreError for damaged metadata."""
    if not source.endswith(".parquet"):
        return None
    folder, name = posixpath.split(Store(source).url)
    store = Store(folder)
    if not store.is_file(name) or not is_own(store, name):
        return None
    with store.open(name) as stream:
        about = ABOUT_FILE.parse(pq.read_schema(stream).metadata[ABOUT], source)
    try:
        coding = Coding.of(about)
    except ValueError as error:
        raise DataError(f"{source} is damaged: {error}", hint=_REPEAT) from None
    return WrittenEmbeddings(source, store, name, about, coding)


def is_own(folder: Store, name: str) -> bool:
    """Whether `tailor embed` wrote the file."""
    try:
        with folder.open(name) as stream:
            return ABOUT in (pq.read_schema(stream).metadata or {})
    except pa.ArrowException:
        return False


def vectors_of(table: pa.Table) -> np.ndarray:
    """The embeddings of a file as it stores them, [n, numbers per embedding], n at least 1."""
    column = table.column(EMBEDDING).combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    found: np.ndarray = flat.reshape(len(column), -1)
    return found
