"""Read rows from JSONL, JSON, Parquet, CSV, TSV and text files and Hugging Face datasets, in independent file ranges."""

from __future__ import annotations

import csv
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from tailor.encode.records import RowError
from tailor.errors import DataError
from tailor.store import hint_of, opened

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".text": "text",
}
COMPRESSIONS = (".gz", ".bz2", ".xz")
CUT_BY_BYTES = ("jsonl", "text")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class FileRange:
    """A file, or a range of one, that a task reads.

    url: the file to open; label: its name in messages. start, stop: bytes for JSONL and text, row
    groups for Parquet, rows for datasets; stop None means the end of the file. first_row: number of rows
    before the range, 0 where it is not known in advance. size: bytes, for the progress bar.
    """

    url: str
    label: str
    kind: str
    start: int = 0
    stop: int | None = None
    first_row: int = 0
    size: int = 0
    subset: str | None = None
    split: str = "train"


class Reader:
    """Iterates over (number, row or RowError); numbers count from 1 within the range. lines: how many were read so far.

    DataError when the file cannot be read.
    """

    def __init__(self, part: FileRange) -> None:
        self.part = part
        self.lines = 0

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        try:
            yield from getattr(self, f"_{self.part.kind}")()
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise _unreadable(self.part, error) from error
        except DataError:
            raise
        except Exception as error:
            # Clients of remote file systems raise error types of their own.
            if "://" not in self.part.url:
                raise
            raise _unreadable(self.part, error) from error

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """(number, line) of the lines that start in [start, stop). Blank lines are counted and skipped."""
        with _open(self.part) as stream:
            position = self.part.start
            if position:
                stream.seek(position - 1)
                position += len(stream.readline()) - 1
            while self.part.stop is None or position < self.part.stop:
                line = stream.readline()
                if not line:
                    break
                if position == 0:
                    position, line = len(line), line.removeprefix(_BYTE_ORDER_MARK)
                else:
                    position += len(line)
                self.lines += 1
                if not line.isspace():
                    yield self.lines, line

    def _jsonl(self) -> Iterator[tuple[int, Any]]:
        for number, line in self._lines():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                yield number, RowError("bad_json", f"not valid JSON ({error})")

    def _text(self) -> Iterator[tuple[int, Any]]:
        for number, line in self._lines():
            try:
                yield number, {"text": line.decode().rstrip("\r\n")}
            except UnicodeDecodeError as error:
                yield number, RowError("bad_encoding", f"not valid UTF-8 ({error})")

    def _json(self) -> Iterator[tuple[int, Any]]:
        with _open(self.part) as stream:
            try:
                loaded = json.load(stream)
            except ValueError as error:
                raise DataError(
                    f"{self.part.label} is not valid JSON ({error})",
                    hint="fix the file, or convert it to JSONL, where tailor can leave out single bad rows",
                ) from None
        rows = loaded.get("data") if isinstance(loaded, dict) else loaded
        if not isinstance(rows, list):
            raise DataError(
                f"{self.part.label} must contain a list of rows, or an object with such a list as `data`"
            )
        self.lines = len(rows)
        yield from enumerate(rows, start=1)

    def _csv(self, delimiter: str = ",") -> Iterator[tuple[int, Any]]:
        # A field may be a whole document, far above the default limit of 128 KiB.
        csv.field_size_limit(1 << 31)
        with _open(self.part) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, delimiter=delimiter, restkey="", restval=None)
            try:
                for number, row in enumerate(reader, start=1):
                    self.lines = number
                    if "" in row or None in row.values():
                        yield (
                            number,
                            RowError(
                                "bad_csv",
                                f"the row does not have {len(reader.fieldnames or ())} fields like the header",
                            ),
                        )
                    else:
                        yield number, row
            except (csv.Error, UnicodeDecodeError) as error:
                raise DataError(f"{self.part.label} cannot be read after row {self.lines}: {error}") from None

    def _tsv(self) -> Iterator[tuple[int, Any]]:
        return self._csv("\t")

    def _parquet(self) -> Iterator[tuple[int, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with _open(self.part) as stream:
            try:
                file = pq.ParquetFile(stream)
                groups = range(self.part.start, self.part.stop or file.num_row_groups)
                for batch in file.iter_batches(batch_size=1000, row_groups=list(groups)):
                    for row in batch.to_pylist():
                        self.lines += 1
                        yield self.lines, without_nulls(row)
            except pa.ArrowException as error:
                raise DataError(f"{self.part.label} is not a readable Parquet file: {error}") from None

    def _dataset(self) -> Iterator[tuple[int, Any]]:
        dataset = load_dataset(self.part)
        stop = len(dataset) if self.part.stop is None else self.part.stop
        for start in range(self.part.start, stop, 1000):
            columns = dataset[start : min(stop, start + 1000)]
            for values in zip(*columns.values(), strict=True):
                self.lines += 1
                yield self.lines, without_nulls(dict(zip(columns, values, strict=True)))


def without_nulls(value: Any) -> Any:
    """Remove null values at every depth: in columnar files every object has the keys of all objects, padded with nulls."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def load_dataset(part: FileRange) -> Any:
    """Load a Hugging Face dataset: from the Hub for `hf://owner/name`, else from a folder made by `save_to_disk`.

    DataError when it cannot be loaded or lacks the split.
    """
    import datasets

    try:
        if part.url.startswith("hf://"):
            name, _, revision = part.url.removeprefix("hf://").partition("@")
            return datasets.load_dataset(name, part.subset, split=part.split, revision=revision or None)
        loaded = datasets.load_from_disk(part.url)
    except Exception as error:
        # The library passes on any error of its network client, its scripts or its cache.
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{part.label} cannot be loaded as a dataset: {first}") from None
    if isinstance(loaded, datasets.DatasetDict):
        if part.split not in loaded:
            raise DataError(
                f"{part.label} has no split `{part.split}`", hint=f"its splits: {', '.join(loaded)}"
            )
        return loaded[part.split]
    return loaded


def _unreadable(part: FileRange, error: Exception) -> DataError:
    return DataError(f"{part.label} cannot be read: {error}", hint=hint_of(part.url, error))


def _open(part: FileRange) -> IO[bytes]:
    if "://" not in part.url and not part.url.endswith(COMPRESSIONS):
        return open(part.url, "rb")
    return opened(part.url, compression="infer")
