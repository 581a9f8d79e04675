"""Where a command's result goes: a folder that holds nothing else, and appears only when it is whole."""

from __future__ import annotations

import posixpath

from tailor.errors import StoreError
from tailor.store import Publication, Store


def publication(to: str, record: str) -> Publication:
    """A folder to fill and commit at `to`. `record` is the file that tells a result of this command from other folders.

    StoreError when something else is there: it would be lost.
    """
    check(to, record)
    parent, name = posixpath.split(Store(to).url.rstrip("/"))
    return Store(parent).publication(name)


def check(to: str, record: str) -> None:
    """StoreError when `to` holds something that the command did not write."""
    store = Store(to)
    if store.exists() and store.names() and not store.exists(record):
        raise StoreError(
            f"{store.url} holds other files, which would be lost",
            mend="name an empty or a new folder with --to",
        )
