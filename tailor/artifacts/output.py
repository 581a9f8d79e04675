"""Where a command's result goes: a folder that holds nothing else, and appears only when it is whole."""

from __future__ import annotations

import posixpath
import shutil
from pathlib import Path

from tailor.errors import StoreError
from tailor.layout import ADAPTER_CONFIG, AVERAGE_RECORD, EXPORT_RECORD, MERGE_RECORD, MODEL_INDEX
from tailor.store import Publication, Store

RECORDS = (MERGE_RECORD, AVERAGE_RECORD, EXPORT_RECORD)


def publication(to: str, record: str) -> Publication:
    """A folder to fill and commit at `to`. `record` is the file that tells a result of this command from other folders.

    StoreError when something else is there: it would be lost.
    """
    check(to, record)
    return Publication(parent_of(to), posixpath.basename(Store(to).url.rstrip("/")))


def parent_of(to: str) -> Store:
    """The folder around `to`, made. StoreError when nothing can be written there."""
    parent = Store(posixpath.dirname(Store(to).url.rstrip("/")))
    try:
        parent.make()
    except StoreError as error:
        raise StoreError(error.message, hint="name another folder with --to") from error
    return parent


def check(to: str, record: str) -> None:
    """StoreError when `to` is a file, or holds something that the command did not write."""
    store = Store(to)
    if store.is_file():
        raise StoreError(f"{store.url} is a file", hint="name an empty or a new folder with --to")
    if store.exists() and store.names() and not store.exists(record):
        raise StoreError(
            f"{store.url} holds other files, which would be lost",
            hint="name an empty or a new folder with --to",
        )


def copy_texts(source: Path, target: Path, but: tuple[str, ...] = ()) -> None:
    """Configuration, tokenizer and template into a folder that has others of its own: no weights, no records."""
    for path in sorted(source.iterdir()):
        text = path.suffix in (".json", ".jinja", ".model", ".txt", ".py") or path.name.startswith("LICENSE")
        own = path.name in (*RECORDS, MODEL_INDEX, ADAPTER_CONFIG, *but)
        if path.is_file() and text and not own and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
