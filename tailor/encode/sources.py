"""Data sources of a recipe: find their files, detect their format, and divide them into tasks."""

from __future__ import annotations

import contextlib
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tailor.encode.format_detection import UnknownFormatError, find_format
from tailor.encode.formats import formats_of
from tailor.encode.readers import (
    BYTE_ORDER_MARK,
    COMPRESSIONS,
    CUT_BY_BYTES,
    MAX_LINE_BYTES,
    SUFFIXES,
    FileRange,
    buffered,
    load_dataset,
)
from tailor.encode.splits import is_metadata, of_split, require_split
from tailor.errors import DataError, TailorError
from tailor.spec.data import RELEVANCE, Benchmark, Source
from tailor.spec.methods.gritlm import Gritlm
from tailor.spec.methods.union import Method
from tailor.spec.tasks.rows import Questions
from tailor.store import filesystem, hint_of, opened, stamp_of

PART_BYTES = 16 << 20
"""Bytes per task."""
SCORED_PART_BYTES = 1 << 16
"""Bytes per task when an embedding model scores passages: a small model takes 10 s of one core for 64 KiB, and 45 min for
16 MiB."""
_MAX_PARTS = 4096
_READABLE = f"supported suffixes: {', '.join(SUFFIXES)}, each also compressed as {', '.join(COMPRESSIONS)}"


@dataclass(frozen=True)
class Resolved:
    """A source with its files and format.

    context: the name of the source in messages. contents: (label, version or hash) of each file, for the fingerprint.
    detected: whether `format` was detected from the rows.
    """

    source: Source
    context: str
    files: tuple[FileRange, ...]
    contents: tuple[tuple[str, str], ...]
    format: str
    detected: bool


def resolve(source: Source, key: str, method: Method) -> Resolved:
    """Find the files of a source and detect its format among those that the method reads.

    key: the recipe key, such as `data.train[0]`. DataError when there are no files, or when the format is unknown or
    ambiguous.
    """
    context = f"{key} {source.path}"
    files = find_files(source, key)
    with _as_data_error(context, source.path):
        fmt, detected = find_format(source, context, files, method)
        contents = tuple((part.label, content_of(part)) for part in files)
    return Resolved(source, context, tuple(files), contents, fmt, detected)


def resolve_queries(path: str, key: str, *, other: str = "") -> Resolved:
    """The files of rows of queries with their passages, and their format, for callers that have no keys to name it.

    other: end of the hint, with what the caller reads instead of rows. DataError when there are no files, or when the rows have no such format.
    """
    among = formats_of((RELEVANCE,))
    hint = f"use rows of one of the formats {', '.join(among)}{other}"
    try:
        found = resolve(Source(path=path), key, Gritlm(name="gritlm"))
    except UnknownFormatError as error:
        raise DataError(error.message, hint=hint) from None
    if found.format not in among:
        raise DataError(f"{found.context}: rows of the format {found.format} have no passages", hint=hint)
    return found


def token_keys(source: Source) -> dict[str, Any]:
    """The keys of a source that determine its tokens. Instructions only if they are set."""
    unset = {name for name in ("query_instruction", "passage_instruction") if getattr(source, name) is None}
    return source.model_dump(exclude={"weight", "samples", *unset})


def find_files(source: Source | Benchmark | Questions, key: str) -> list[FileRange]:
    """The files of a source, sorted by path. DataError when there are none."""
    context = f"{key} {source.path}"
    with _as_data_error(context, source.path):
        files = _dataset(source) if _is_dataset(source.path) else _files(source, context)
        if not files:
            raise DataError(f"{context}: no supported file that is not empty", hint=_READABLE)
    return files


@contextlib.contextmanager
def _as_data_error(context: str, url: str) -> Iterator[None]:
    """Convert file system errors into a DataError. Clients of remote file systems raise error types of their own."""
    try:
        yield
    except TailorError:
        raise
    except Exception as error:
        broken = (OSError, EOFError, ImportError, ValueError, zlib.error, lzma.LZMAError)
        if "://" not in url and not isinstance(error, broken):
            raise
        raise DataError(f"{context}: cannot be read: {error}", hint=hint_of(url, error)) from error


def cut(resolved: Resolved, *, scored: bool = False) -> list[tuple[FileRange, ...]]:
    """Divide a source into tasks; returns the file ranges of each task. scored: an embedding model scores passages.

    A source with a `limit` is a single task, because its rows are counted one after the other.
    """
    if resolved.source.limit is not None:
        return [resolved.files]
    min_bytes = SCORED_PART_BYTES if scored else PART_BYTES
    max_bytes = max(min_bytes, sum(part.size for part in resolved.files) // _MAX_PARTS)
    tasks: list[tuple[FileRange, ...]] = []
    small: list[FileRange] = []
    for part in resolved.files:
        pieces = list(_pieces(part, max_bytes))
        if len(pieces) > 1 or sum(other.size for other in small) + part.size > max_bytes:
            tasks += [tuple(small)] if small else []
            small = []
        if len(pieces) > 1:
            tasks += [(piece,) for piece in pieces]
        else:
            small.append(part)
    return tasks + ([tuple(small)] if small else [])


def _pieces(part: FileRange, max_bytes: int) -> Iterator[FileRange]:
    if part.kind in CUT_BY_BYTES and part.seekable and not part.url.endswith(COMPRESSIONS):
        count = max(1, -(-part.size // max_bytes))
        step = -(-part.size // count)
        for start in range(0, part.size, step):
            size = min(step, part.size - start)
            yield replace(part, start=start, stop=start + size, size=size)
    elif part.kind == "parquet":
        yield from _row_groups(part, max_bytes)
    elif part.kind == "dataset":
        rows = len(load_dataset(part))
        count = max(1, -(-part.size // max_bytes))
        step = max(1, -(-rows // count))
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            yield replace(
                part, start=start, stop=stop, first_row=start, size=part.size * (stop - start) // rows
            )
    else:
        yield part


def _row_groups(part: FileRange, max_bytes: int) -> Iterator[FileRange]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _as_data_error(part.label, part.url), opened(part.url) as stream:
        try:
            metadata = pq.ParquetFile(stream).metadata
        except pa.ArrowException as error:
            raise DataError(f"{part.label} is not a readable Parquet file: {error}") from None
    start = first = rows = size = 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        size += metadata.row_group(group).total_byte_size
        if size >= max_bytes or group == metadata.num_row_groups - 1:
            yield replace(part, start=start, stop=group + 1, first_row=first, size=size)
            start, first, rows, size = group + 1, first + rows, 0, 0


def _is_dataset(path: str) -> bool:
    if path.startswith("hf://"):
        return not path.startswith("hf://datasets/")
    return "://" not in path and any(
        (Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json")
    )


def _dataset(source: Source | Benchmark | Questions) -> list[FileRange]:
    part = FileRange(source.path, source.path, "dataset", subset=source.subset, split=source.split)
    return [replace(part, size=load_dataset(part).data.nbytes)]


def _files(source: Source | Benchmark | Questions, context: str) -> list[FileRange]:
    fs, root = filesystem(source.path, fresh=False)
    local = "://" not in source.path
    if fs.isdir(root):
        found = [path for path in fs.find(root) if _kind(path) and not _hidden(path[len(root) :])]
    elif fs.exists(root):
        found = [root]
    elif any(char in source.path for char in "*?["):
        found = [path for path in fs.glob(root) if _kind(path) and not _hidden(Path(path).name)]
        found = [path for path in found if not fs.isdir(path)]
    else:
        resolved = f" (resolved to {root})" if local and not os.path.isabs(source.path) else ""
        raise DataError(
            f"{context}: does not exist{resolved}",
            hint="check the path; it is relative to the working directory" if local else "check the URL",
        )
    asked = source.split if "split" in source.model_fields_set else None
    if [root] == found:
        if asked is not None:
            require_split(root, asked, context)
    else:
        base = root if fs.isdir(root) else re.split(r"[*?[]", root)[0].rpartition("/")[0]
        below = {path: path[len(base) :].lstrip("/") for path in found if not is_metadata(path)}
        found = of_split(below, asked, context)
    parts = []
    for path in sorted(found):
        kind = _kind(path)
        if kind is None:
            raise DataError(f"{context}: unknown file type", hint=_READABLE)
        url = path if local else fs.unstrip_protocol(path)
        label = _label(source.path, root, path, url)
        size = fs.size(path)  # None where the server does not say it
        bytes_ = _counted(url) if size is None else int(size)
        parts.append(FileRange(url, label, kind, size=bytes_, seekable=size is not None))
    return [_with_json_kind(part) for part in parts if part.size]


def _counted(url: str) -> int:
    """The number of bytes of a file whose server does not say it."""
    size = 0
    with opened(url) as stream:
        while block := stream.read(1 << 22):
            size += len(block)
    return size


def _kind(path: str) -> str | None:
    name = Path(path).name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return SUFFIXES.get(Path(name).suffix)


def _hidden(below: str) -> bool:
    return any(piece.startswith((".", "_")) for piece in below.split("/"))


def _label(source_path: str, root: str, path: str, url: str) -> str:
    """The name of a file in messages: a URL or an absolute path if the source's path is one, else a relative path."""
    if path == root:
        return source_path
    return url if "://" in source_path or os.path.isabs(source_path) else os.path.relpath(path)


def _with_json_kind(part: FileRange) -> FileRange:
    """Look into a `.json` file: it contains an array, an object with an array as `data`, or one object per line."""
    if part.kind != "json":
        return part
    with buffered(opened(part.url, compression="infer")) as stream:
        first = stream.readline(MAX_LINE_BYTES).removeprefix(BYTE_ORDER_MARK)
        while first and first.isspace():
            first = stream.readline(MAX_LINE_BYTES)
        more = bool(stream.readline(MAX_LINE_BYTES).strip())
    if not first.lstrip().startswith(b"{"):
        return part
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return part
    is_wrapper = not more and isinstance(row.get("data"), list)
    return part if is_wrapper else replace(part, kind="jsonl")


def content_of(part: FileRange) -> str:
    """A string that changes when the file changes: the version that a remote store reports, else a hash of the bytes."""
    if part.kind == "dataset":
        return str(load_dataset(part)._fingerprint)
    if "://" in part.url:
        fs, path = filesystem(part.url, fresh=False)
        info = fs.info(path)
        if (stamp := stamp_of(info)) is not None:
            return f"{info.get('size')} {stamp}"
    return _hashed(part.url)


def _hashed(url: str) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    with opened(url) as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
