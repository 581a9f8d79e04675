"""The files of `tailor mine` and `tailor score`: rows of queries that are read, and the JSONL file that is written."""

from __future__ import annotations

import posixpath

from tailor.errors import StoreError
from tailor.evaluate.mining.rows import QueryRows, first_of, read_query_rows
from tailor.onray.display import Display
from tailor.store import Store


def output_file(to: str) -> tuple[Store, str]:
    """(folder, name) of a new JSONL file. StoreError when it exists or has another suffix."""
    if not to.endswith(".jsonl"):
        raise StoreError(
            f"{to} is not the name of a JSONL file", hint="give the output a name that ends in .jsonl"
        )
    folder, name = posixpath.split(Store(to).url)
    parent = Store(folder)
    if parent.exists(name):
        raise StoreError(f"{to} already exists", hint="choose a file that does not exist yet, or remove it")
    return parent, name


def read_rows(path: str, display: Display) -> QueryRows:
    """The rows. Those that cannot be read are reported."""
    read = read_query_rows(path)
    if count := read.unreadable.count:
        display.line(f"left out {count:,} rows that cannot be read{first_of(read.unreadable)}")
    return read
