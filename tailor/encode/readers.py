"""Read rows from JSONL, JSON, Parquet, CSV, TSV and text files and Hugging Face datasets, in independent file ranges."""

from __future__ import annotations

import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from tailor.encode import delimited
from tailor.encode.records import RowError, unreadable_value
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
MAX_LINE_BYTES = 32 << 20
"""A longer line is not read, but counted as too long."""
_BATCH_ROWS = 1000
_MIN_WHOLE_BYTES, _MAX_RATIO = 64 << 20, 100
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class FileRange:
    """A file, or a range of one, that a task reads.

    url: the file to open; label: its name in messages. start, stop: bytes for JSONL and text, row
    groups for Parquet, rows for datasets; stop None means the end of the file. first_row: number of rows
    before the range, 0 where it is not known in advance. size: bytes, for the progress bar. seekable: False if the
    server sends the file only from its start.
    """

    url: str
    label: str
    kind: str
    start: int = 0
    stop: int | None = None
    first_row: int = 0
    size: int = 0
    seekable: bool = True
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
        except (UnicodeDecodeError, RecursionError) as error:
            raise _unreadable(self.part, error) from error
        except Exception as error:
            # Clients of remote file systems raise error types of their own.
            if "://" not in self.part.url:
                raise
            raise _unreadable(self.part, error) from error

    def _lines(self) -> Iterator[tuple[int, bytes | RowError]]:
        """(number, line) of the lines that start in [start, stop), RowError for one that is too long.

        Blank lines are counted and skipped.
        """
        with buffered(_open(self.part)) as stream:
            position = self.part.start
            if position:
                stream.seek(position - 1)
                position += _skip_line(stream) - 1
            while self.part.stop is None or position < self.part.stop:
                line = stream.readline(MAX_LINE_BYTES)
                if not line:
                    break
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    size = len(line) + _skip_line(stream)
                    position, self.lines = position + size, self.lines + 1
                    yield (
                        self.lines,
                        RowError(
                            "too_long", f"a line of {size:,} bytes; at most {MAX_LINE_BYTES:,} are read"
                        ),
                    )
                    continue
                if position == 0:
                    position, line = len(line), line.removeprefix(BYTE_ORDER_MARK)
                else:
                    position += len(line)
                self.lines += 1
                if not line.isspace():
                    yield self.lines, line

    def _jsonl(self) -> Iterator[tuple[int, Any]]:
        for number, line in self._lines():
            if isinstance(line, RowError):
                yield number, line
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                row = RowError("bad_json", f"not valid JSON ({error})")
            except RecursionError as error:
                row = unreadable_value(error)
            yield number, row

    def _text(self) -> Iterator[tuple[int, Any]]:
        for number, line in self._lines():
            if isinstance(line, RowError):
                yield number, line
                continue
            try:
                yield number, {"text": line.decode().rstrip("\r\n")}
            except UnicodeDecodeError as error:
                yield number, RowError("bad_encoding", f"not valid UTF-8 ({error})")

    def _json(self) -> Iterator[tuple[int, Any]]:
        with _open(self.part) as stream:
            try:
                loaded = json.loads(_whole(stream, self.part))
            except RecursionError:
                raise DataError(
                    f"{self.part.label} is nested too deeply", hint="write one object per line as .jsonl"
                ) from None
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
        with _open(self.part) as stream:
            for number, row in enumerate(delimited.read(stream, self.part.label, delimiter), start=1):
                self.lines = number
                yield number, row

    def _tsv(self) -> Iterator[tuple[int, Any]]:
        return self._csv("\t")

    def _parquet(self) -> Iterator[tuple[int, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with _open(self.part) as stream:
            try:
                file = pq.ParquetFile(stream)
                _refuse_twice(self.part, file.schema_arrow.names)
                groups = list(range(self.part.start, self.part.stop or file.num_row_groups))
                for batch in file.iter_batches(batch_size=_batch_rows(file, groups), row_groups=groups):
                    for row in _rows(
                        batch.to_pylist, lambda at, own=batch: own.slice(at, 1).to_pylist()[0], len(batch)
                    ):
                        self.lines += 1
                        yield self.lines, row
            except pa.ArrowException as error:
                raise DataError(f"{self.part.label} is not a readable Parquet file: {error}") from None

    def _dataset(self) -> Iterator[tuple[int, Any]]:
        dataset = load_dataset(self.part)
        stop = len(dataset) if self.part.stop is None else self.part.stop
        for start in range(self.part.start, stop, _BATCH_ROWS):
            count = min(stop - start, _BATCH_ROWS)
            for row in _rows(
                lambda begin=start, end=start + count: _transposed(dataset[begin:end]),
                lambda at, begin=start: dataset[begin + at],
                count,
            ):
                self.lines += 1
                yield self.lines, row


def _transposed(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _rows(all_of_them: Callable[[], list[Any]], one: Callable[[int], Any], count: int) -> Iterator[Any]:
    """The rows of a batch. Where a value has no counterpart in Python, such as a date beyond year 9999, or text that
    is not UTF-8, the rows are read one by one, so that only its row is refused."""
    try:
        rows = all_of_them()
    except Exception:
        rows = [_guarded(one, at) for at in range(count)]
    for row in rows:
        yield _guarded(without_nulls, row) if not isinstance(row, RowError) else row


def _guarded(read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except Exception as error:
        return unreadable_value(error)


def _refuse_twice(part: FileRange, names: Sequence[str]) -> None:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{part.label} has the column `{twice}` twice", hint="rename one of them")


def _batch_rows(file: Any, groups: Sequence[int]) -> int:
    """Rows to read at once: fewer where they are long."""
    own = [file.metadata.row_group(group) for group in groups]
    size, rows = sum(group.total_byte_size for group in own), sum(group.num_rows for group in own)
    return max(1, min(_BATCH_ROWS, (64 << 20) * rows // max(size, 1)))


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
        hint = "check the name and the network; for gated or private data, set HF_TOKEN"
        if part.url.startswith("hf://") and "scripts are no longer supported" in first:
            hint = (
                f"name a file of it: hf://datasets/{part.url.removeprefix('hf://')}/FILE, such as train.jsonl"
            )
        raise DataError(f"{part.label} cannot be loaded as a dataset: {first}", hint=hint) from None
    if isinstance(loaded, datasets.DatasetDict):
        if part.split not in loaded:
            raise DataError(
                f"{part.label} has no split `{part.split}`", hint=f"its splits: {', '.join(loaded)}"
            )
        return loaded[part.split]
    return loaded


def buffered(stream: IO[bytes]) -> IO[bytes]:
    """The stream with a bounded `readline`, which remote files of fsspec do not have."""
    return stream if isinstance(stream, io.BufferedIOBase) else io.BufferedReader(stream, 1 << 20)  # type: ignore


def _skip_line(stream: IO[bytes]) -> int:
    """Read to the end of the line, without keeping it. The bytes read."""
    size = 0
    while piece := stream.readline(1 << 20):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    return size


def _whole(stream: IO[bytes], part: FileRange) -> bytes:
    """The bytes of a file. DataError for a small compressed file that fills the memory."""
    most = max(_MIN_WHOLE_BYTES, _MAX_RATIO * part.size) if part.url.endswith(COMPRESSIONS) else -1
    content = stream.read(most + 1 if most >= 0 else -1)
    if 0 <= most < len(content):
        raise DataError(
            f"{part.label} holds over {_MAX_RATIO} times the bytes of the file, which is no text",
            hint="check the file, or write one object per line as .jsonl",
        )
    return content


def _unreadable(part: FileRange, error: Exception) -> DataError:
    return DataError(f"{part.label} cannot be read: {error}", hint=hint_of(part.url, error))


def _open(part: FileRange) -> IO[bytes]:
    if "://" not in part.url and not part.url.endswith(COMPRESSIONS):
        return open(part.url, "rb")
    return opened(part.url, compression="infer")
