"""The output folder of merge, average and export: written atomically, and never over other content."""

from __future__ import annotations

import posixpath
import shutil
from pathlib import Path
from typing import Any

from tailor.errors import StoreError
from tailor.layout import ADAPTER_CONFIG, AVERAGE_RECORD, EXPORT_RECORD, MERGE_RECORD, MODEL_INDEX
from tailor.models.links import inside
from tailor.store import JsonFile, Publication, Store
from tailor.store.publication import require_replaceable

RECORDS = (MERGE_RECORD, AVERAGE_RECORD, EXPORT_RECORD)
RECORD_FILE = JsonFile(dict[str, Any], "make {folder} again")


def publication(to: str, record: str) -> Publication:
    """A folder that is filled and then committed at `to`. record: the file that only results of this command have.

    StoreError when `to` has other content, which would be lost.
    """
    check(to, record)
    return Publication(parent_of(to), _split(to)[1])


def parent_of(to: str) -> Store:
    """Create the parent folder of `to`. StoreError when it is not writable."""
    parent = Store(_split(to)[0])
    try:
        parent.make()
    except StoreError as error:
        raise StoreError(error.message, hint="give another folder with --to") from error
    return parent


def check(to: str, record: str) -> None:
    """StoreError when `to` is a file or a link, or has content that this command did not write, changed or added since."""
    parent, name = _split(to)
    store = Store(to)
    if store.is_file():
        raise StoreError(f"{store.url} is a file", hint="give an empty or new folder with --to")
    if store.exists() and store.names() and not store.exists(record):
        raise StoreError(
            f"{store.url} has other files, which would be overwritten",
            hint="give an empty or new folder with --to",
        )
    require_replaceable(Store(parent), name)


def _split(to: str) -> tuple[str, str]:
    """The parent of a folder, and its name. StoreError for a whole bucket, which has no parent."""
    store = Store(to)
    url = store.url.rstrip("/")
    if not store.is_local and "/" not in url.partition("://")[2].strip("/"):
        raise StoreError(f"{to} has no folder above it", hint=f"name a folder in it, such as {url}/result")
    return posixpath.split(url)


def copy_texts(source: Path, target: Path, but: tuple[str, ...] = ()) -> list[str]:
    """Copy configuration, tokenizer and template files that `target` does not have yet. Weights and records are skipped.

    Returns a line about each link that leaves `source`, which is not copied.
    """
    skipped: list[str] = []
    for path in inside(sorted(source.iterdir()), source, skipped):
        text = path.suffix in (".json", ".jinja", ".model", ".txt", ".py") or path.name.startswith("LICENSE")
        own = path.name in (*RECORDS, MODEL_INDEX, ADAPTER_CONFIG, *but)
        if text and not own and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
    return skipped
