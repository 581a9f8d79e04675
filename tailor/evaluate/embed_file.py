"""The output file of `tailor embed`: the input rows with their embeddings, in Parquet, joined from one part per batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import reduce
from typing import Any, Literal, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tailor.encode.columns import near_column, require_columns
from tailor.encode.readers import FileRange, Reader
from tailor.encode.records import RowError, require_unicode
from tailor.encode.sources import content_of, find_files
from tailor.errors import DataError
from tailor.evaluate import key_value_files
from tailor.evaluate.batches import EMBEDDED, Embedded
from tailor.evaluate.models import EvaluatedModel
from tailor.evaluate.progress import ResumableParts, fingerprint_of
from tailor.evaluate.retrieval.precision import Coding, Quantized, Ranges
from tailor.evaluate.written_embeddings import ABOUT, EMBEDDING, ROW, find_written, vectors_of
from tailor.spec.tasks.rows import Questions
from tailor.store import Store

TRUNCATED = b"truncated"


@dataclass(frozen=True)
class Request:
    """What to embed of each row, and which other columns to keep."""

    source: str
    columns: tuple[str, ...] = ("text",)
    """Columns to embed. Their texts are joined by a space, as BEIR joins title and text. Only the last one is required."""
    keep: tuple[str, ...] = ()
    instruction: str | None = None
    dimension: int | None = None
    dtype: Literal["float32", "float16", "int8", "ubinary"] = "float32"
    """Of the numbers in the file. They are computed and normalized in float32."""
    ranges: str | None = None
    """For int8: a file of embeddings whose ranges to use. None: the ranges of the input's embeddings."""
    key_values: bool = False
    """Also write the key-values of each text, to generate from."""

    @property
    def batch_rows(self) -> int:
        """Rows of a batch. Key-values of 256 tokens take 32 MiB in a model of 7 billion weights with grouped heads."""
        return 32 if self.key_values else EMBEDDED


@dataclass(frozen=True)
class Batch:
    """`Request.batch_rows` consecutive rows. first: number of its first row, counted from 1 over all files."""

    first: int
    texts: tuple[str, ...]
    kept: tuple[Mapping[str, Any], ...]


def find_input(request: Request) -> list[FileRange]:
    """The input's files. DataError when there are none."""
    return find_files(Questions(path=request.source), "input")


def read_batches(
    parts: Sequence[FileRange], request: Request, columns: NamedColumns | None = None
) -> Iterator[Batch]:
    """The rows in batches of `Request.batch_rows`, whatever the number of workers. DataError for a row that cannot be embedded.

    columns: counts the named columns of every row.
    """
    texts: list[str] = []
    kept: list[Mapping[str, Any]] = []
    first = 1
    for text, other in _rows(parts, request, columns):
        texts.append(text)
        kept.append(other)
        if len(texts) == request.batch_rows:
            yield Batch(first, tuple(texts), tuple(kept))
            first, texts, kept = first + len(texts), [], []
    if texts:
        yield Batch(first, tuple(texts), tuple(kept))


@dataclass(frozen=True)
class Scanned:
    """What the whole input has. sizes: rows of each batch. kept: types of the kept columns. absent: named column -> number of
    rows without it, where there are some."""

    sizes: list[int]
    kept: pa.Schema
    absent: dict[str, int]


def scan_input(parts: Sequence[FileRange], request: Request) -> Scanned:
    """Read the whole input once.

    DataError for a row that cannot be embedded, for a named column that no row has, and for a kept column of mixed types.
    """
    sizes, schema = [], pa.schema([])
    columns = NamedColumns(request)
    for batch in read_batches(parts, request, columns):
        sizes.append(len(batch.texts))
        for name in request.keep:
            try:
                values = pa.array([row[name] for row in batch.kept])
                column = pa.schema([(name, values.type)])
                schema = pa.unify_schemas([schema, column], promote_options="permissive")
            except pa.ArrowException as error:
                raise DataError(
                    f"--keep {name}: the column has values of different types, in row {batch.first + len(batch.texts) - 1} or "
                    f"before ({error})"
                ) from None
    if not sizes:
        raise DataError(f"input {request.source}: no rows")
    require_columns(columns.named, columns.found, columns.keys, parts, f"input {request.source}")
    return Scanned(sizes, schema, {name: count for name, count in columns.absent.items() if count})


class NamedColumns:
    """Which of the named columns the rows have."""

    def __init__(self, request: Request) -> None:
        options = (("--column", request.columns), ("--keep", request.keep))
        self.named = [(option, name) for option, names in options for name in names]
        self.found: set[str] = set()
        self.keys: dict[str, None] = {}
        """Columns of the first row."""
        self.absent: dict[str, int] = dict.fromkeys((name for _, name in self.named), 0)
        """Named column -> number of rows without a value for it."""

    def add(self, row: Mapping[str, Any]) -> None:
        self.keys = self.keys or dict.fromkeys(row)
        for name in self.absent:
            if name in row:
                self.found.add(name)
            self.absent[name] += row.get(name) is None


def _rows(
    parts: Sequence[FileRange], request: Request, columns: NamedColumns | None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for part in parts:
        for number, row in Reader(part):
            try:
                text = text_of(row, request, columns)
            except RowError as error:
                raise DataError(
                    f"{part.label}:{number}: {error.detail or error.reason}",
                    hint=_hint(error.reason, row, request),
                ) from None
            yield text, {name: row.get(name) for name in request.keep}


def text_of(row: Any, request: Request, columns: NamedColumns | None = None) -> str:
    """The text of a row to embed. RowError for a row without one. columns: counts the named columns."""
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, Mapping):
        raise RowError("wrong_type", "a row must be an object")
    if columns is not None:
        columns.add(row)
    *before, last = request.columns
    if row.get(last) is None:
        raise RowError("missing_key", f"missing key `{last}`")
    values = [*(row.get(column) or "" for column in before), row[last]]
    if not all(isinstance(value, str) for value in values):
        raise RowError("wrong_type", f"{' and '.join(f'`{one}`' for one in request.columns)} must be text")
    text = " ".join(value for value in values if value)
    if not text.strip():
        raise RowError("empty", "no text to embed")
    require_unicode(text)
    return text


def _hint(reason: str, row: Any, request: Request) -> str | None:
    if reason == "missing_key" and isinstance(row, Mapping):
        last = request.columns[-1]
        return (near_column(last, row) if last not in row else "") or "give the text column with --column"
    return "remove the row" if reason == "empty" else None


def fingerprint(parts: Sequence[FileRange], request: Request, model: Any) -> str:
    """A hash of the input's content, the request and the model."""
    content = [(part.label, content_of(part)) for part in parts]
    keys = asdict(request)
    for key in ("key_values", "ranges"):
        if not keys[key]:
            del keys[key]
    return fingerprint_of([json.dumps([content, keys, model, EMBEDDED], sort_keys=True)])


class EmbeddingParts(ResumableParts):
    """The finished batches, each a Parquet file, in a folder beside the output file."""

    suffixes = (".parquet", key_value_files.SUFFIX)

    def has(self, number: int) -> bool:
        return self.file(number, ".parquet") in self._existing  # written after the key-values

    def __init__(self, folder: Store, identity: str, kept: pa.Schema, dtype: str = "float32") -> None:
        """kept: the types of the kept columns. dtype: of the embeddings."""
        super().__init__(folder, identity)
        self._kept = kept
        # Quantized when the parts are joined: the ranges of int8 are those of all parts.
        self._dtype = np.dtype("float32" if dtype in get_args(Quantized) else dtype)

    def write(self, number: int, batch: Batch, result: Embedded) -> None:
        """Write one batch atomically. DataError for numbers that the data type cannot represent."""
        if result.key_values:
            key_value_files.write(
                self.folder, self.file(number, key_value_files.SUFFIX), batch.first, result.key_values
            )
        with self.folder.open(self.file(number, ".parquet"), "wb") as stream:
            pq.write_table(self._table(batch, result), stream, compression="zstd")
        self._existing.add(self.file(number, ".parquet"))

    def _table(self, batch: Batch, result: Embedded) -> pa.Table:
        rows = pa.array(range(batch.first, batch.first + len(batch.texts)), pa.int64())
        kept = {
            field.name: pa.array([row[field.name] for row in batch.kept]).cast(field.type)
            for field in self._kept
        }
        with np.errstate(over="ignore"):
            numbers = np.ascontiguousarray(result.vectors, self._dtype).reshape(-1)
        if not np.isfinite(numbers).all():
            raise DataError(
                f"--dtype {self._dtype}: it cannot represent the embeddings, whose largest number is {abs(result.vectors).max():.3g}",
                hint="use --dtype float32",
            )
        vectors = _lists(numbers.reshape(result.vectors.shape))
        table = pa.table({ROW: rows, **kept, EMBEDDING: vectors})
        return table.replace_schema_metadata({TRUNCATED: str(result.truncated)})

    def join(
        self, to: Store, name: str, count: int, about: dict[str, Any], coding: Coding | None = None
    ) -> int:
        """Join all batches into one file, in the input's order. The file is written atomically.

        coding: of quantized embeddings. Returns the number of truncated texts.
        """
        schemas = []
        for number in range(count):
            with self.folder.open(self.file(number, ".parquet")) as part:
                schemas.append(pq.read_schema(part))
        truncated = sum(int(schema.metadata[TRUNCATED]) for schema in schemas)
        about = {**about, "truncated": truncated}
        if coding is not None:
            if coding.name == "int8" and coding.ranges is None:
                coding = replace(coding, ranges=reduce(Ranges.joined, map(Ranges.of, self._vectors(count))))
            about |= coding.about(schemas[0].field(EMBEDDING).type.list_size)
        schema: pa.Schema | None = None
        with to.open(name, "wb") as stream, ExitStack() as stack:
            for number in range(count):
                with self.folder.open(self.file(number, ".parquet")) as part:
                    table = pq.read_table(part)
                if coding is not None:
                    table = table.set_column(
                        table.num_columns - 1, EMBEDDING, _lists(coding.encode(vectors_of(table)))
                    )
                if schema is None:
                    schema = table.schema.with_metadata({ABOUT: json.dumps(about)})
                    writer = stack.enter_context(pq.ParquetWriter(stream, schema, compression="zstd"))
                writer.write_table(table.cast(schema))
        return truncated

    def join_key_values(self, to: Store, name: str, count: int, about: key_value_files.About) -> None:
        """Copy the key-values of all batches into the folder of the file `name`, which is replaced."""
        folder = to.join(key_value_files.folder_of(name))
        to.remove(key_value_files.folder_of(name), key_value_files.is_own)
        folder.make()
        for number in range(count):
            file = self.file(number, key_value_files.SUFFIX)
            with self.folder.open(file) as part, folder.open(file, "wb") as stream:
                shutil.copyfileobj(part, stream)
        key_value_files.INDEX_FILE.write(folder, key_value_files.INDEX, about)

    def _vectors(self, count: int) -> Iterator[np.ndarray]:
        for number in range(count):
            with self.folder.open(self.file(number, ".parquet")) as part:
                yield vectors_of(pq.read_table(part, columns=[EMBEDDING]))


def coding_of(request: Request, model: EvaluatedModel) -> Coding | None:
    """The coding of a request; None for plain numbers. DataError for a file without fitting ranges."""
    if request.dtype not in get_args(Quantized):
        return None
    coding = Coding(cast(Quantized, request.dtype))
    if request.ranges is None:
        return coding
    if (found := find_written(request.ranges)) is None:
        raise DataError(
            f"--ranges {request.ranges}: it is not a file that `tailor embed` wrote",
            hint="give the int8 embeddings of the corpus",
        )
    if found.coding is None or found.coding.ranges is None:
        raise DataError(
            f"--ranges {request.ranges}: it has no ranges",
            hint="give a file that `tailor embed --dtype int8` wrote with the same model",
        )
    found.require_model(model)
    found.coding.require_dimension(request.dimension)
    return found.coding


def _lists(numbers: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(numbers).reshape(-1), pa.from_numpy_dtype(numbers.dtype))
    return pa.FixedSizeListArray.from_arrays(flat, numbers.shape[1])
