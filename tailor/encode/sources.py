"""A recipe's sources: which files they are, what is in them, and how the work on them is cut."""

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

from tailor.encode.format_detection import find_format
from tailor.encode.readers import (
    COMPRESSIONS,
    CUT_BY_BYTES,
    MAX_LINE_BYTES,
    SUFFIXES,
    FileRange,
    buffered,
    load_dataset,
)
from tailor.encode.splits import is_metadata, of_split
from tailor.errors import DataError, TailorError
from tailor.spec.data import Source
from tailor.spec.methods.union import Method
from tailor.spec.tasks.rows import Questions
from tailor.store import filesystem, hint_of, opened, stamp_of

PART_BYTES = 16 << 20
SCORED_PART_BYTES = 1 << 16
"""Of a task whose passages a model scores. A small one takes ten seconds of one core for it, and for 16 MB three quarters of
an hour."""
_MAX_PARTS = 4096
_READABLE = f"readable are: {', '.join(SUFFIXES)}, also as {', '.join(COMPRESSIONS)}"


@dataclass(frozen=True)
class Resolved:
    """A source with its files found. where: how messages call it. contents: what the fingerprint sees of each file."""

    source: Source
    where: str
    files: tuple[FileRange, ...]
    contents: tuple[tuple[str, str], ...]
    format: str
    guessed: bool


def resolve(source: Source, key: str, method: Method) -> Resolved:
    """Find a source's files and its format. DataError when there are none, or when the format is a riddle.

    Only the formats that the method reads are recognized.
    """
    where = f"{key} {source.path}"
    files = find_files(source, key)
    with _naming(where, source.path):
        fmt, guessed = find_format(source, where, files, method)
        contents = tuple((part.label, content_of(part)) for part in files)
    return Resolved(source, where, tuple(files), contents, fmt, guessed)


def find_files(source: Source | Questions, key: str) -> list[FileRange]:
    """A source's files, in order. DataError when there are none."""
    where = f"{key} {source.path}"
    with _naming(where, source.path):
        files = _dataset(source) if _is_dataset(source.path) else _files(source, where)
        if not files:
            raise DataError(f"{where}: no file with rows in it", hint=_READABLE)
    return files


@contextlib.contextmanager
def _naming(where: str, url: str) -> Iterator[None]:
    """Turn a file system's error into a DataError. Clients of remote ones raise errors of their own."""
    try:
        yield
    except TailorError:
        raise
    except Exception as error:
        broken = (OSError, EOFError, ImportError, ValueError, zlib.error, lzma.LZMAError)
        if "://" not in url and not isinstance(error, broken):
            raise
        raise DataError(f"{where}: it cannot be read: {error}", hint=hint_of(url, error)) from error


def cut(resolved: Resolved, *, scored: bool = False) -> list[tuple[FileRange, ...]]:
    """The work on a source, as the parts of each task. A source with a limit is one task, for its rows are counted."""
    if resolved.source.limit is not None:
        return [resolved.files]
    small_part = SCORED_PART_BYTES if scored else PART_BYTES
    most = max(small_part, sum(part.size for part in resolved.files) // _MAX_PARTS)
    tasks: list[tuple[FileRange, ...]] = []
    small: list[FileRange] = []
    for part in resolved.files:
        pieces = list(_pieces(part, most))
        if len(pieces) > 1 or sum(other.size for other in small) + part.size > most:
            tasks += [tuple(small)] if small else []
            small = []
        if len(pieces) > 1:
            tasks += [(piece,) for piece in pieces]
        else:
            small.append(part)
    return tasks + ([tuple(small)] if small else [])


def _pieces(part: FileRange, most: int) -> Iterator[FileRange]:
    if part.kind in CUT_BY_BYTES and not part.url.endswith(COMPRESSIONS):
        count = max(1, -(-part.size // most))
        step = -(-part.size // count)
        for start in range(0, part.size, step):
            size = min(step, part.size - start)
            yield replace(part, start=start, stop=start + size, size=size)
    elif part.kind == "parquet":
        yield from _row_groups(part, most)
    elif part.kind == "dataset":
        rows = len(load_dataset(part))
        count = max(1, -(-part.size // most))
        step = max(1, -(-rows // count))
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            yield replace(
                part, start=start, stop=stop, first_row=start, size=part.size * (stop - start) // rows
            )
    else:
        yield part


def _row_groups(part: FileRange, most: int) -> Iterator[FileRange]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _naming(part.label, part.url), opened(part.url) as stream:
        try:
            metadata = pq.ParquetFile(stream).metadata
        except pa.ArrowException as error:
            raise DataError(f"{part.label} is not a readable Parquet file: {error}") from None
    start = first = rows = size = 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        size += metadata.row_group(group).total_byte_size
        if size >= most or group == metadata.num_row_groups - 1:
            yield replace(part, start=start, stop=group + 1, first_row=first, size=size)
            start, first, rows, size = group + 1, first + rows, 0, 0


def _is_dataset(path: str) -> bool:
    if path.startswith("hf://"):
        return not path.startswith("hf://datasets/")
    return "://" not in path and any(
        (Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json")
    )


def _dataset(source: Source | Questions) -> list[FileRange]:
    part = FileRange(source.path, source.path, "dataset", subset=source.subset, split=source.split)
    return [replace(part, size=load_dataset(part).data.nbytes)]


def _files(source: Source | Questions, where: str) -> list[FileRange]:
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
        looked = f" (looked for {root})" if local and not os.path.isabs(source.path) else ""
        raise DataError(
            f"{where}: it does not exist{looked}",
            hint="check the path; it is relative to the working directory" if local else "check the URL",
        )
    if [root] != found:
        base = root if fs.isdir(root) else re.split(r"[*?[]", root)[0].rpartition("/")[0]
        below = {path: path[len(base) :].lstrip("/") for path in found if not is_metadata(path)}
        found = of_split(below, source.split if "split" in source.model_fields_set else None, where)
    parts = []
    for path in sorted(found):
        kind = _kind(path)
        if kind is None:
            raise DataError(f"{where}: unknown kind of file", hint=_READABLE)
        url = path if local else fs.unstrip_protocol(path)
        label = _label(source.path, root, path, url)
        parts.append(FileRange(url, label, kind, size=int(fs.size(path) or 0)))
    return [_looked_into(part) for part in parts if part.size]


def _kind(path: str) -> str | None:
    name = Path(path).name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return SUFFIXES.get(Path(name).suffix)


def _hidden(below: str) -> bool:
    return any(piece.startswith((".", "_")) for piece in below.split("/"))


def _label(asked: str, root: str, path: str, url: str) -> str:
    """A file as the user would call it: local ones relative to the same place as the source's path."""
    if path == root:
        return asked
    return url if "://" in asked or os.path.isabs(asked) else os.path.relpath(path)


def _looked_into(part: FileRange) -> FileRange:
    """`.json` may hold an array, an object around an array, or one object per line."""
    if part.kind != "json":
        return part
    with buffered(opened(part.url, compression="infer")) as stream:
        first = stream.readline(MAX_LINE_BYTES)
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
    """What changes when the file changes: what a remote store says of its version, or else its bytes' hash."""
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
