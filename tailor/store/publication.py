"""Folders that exist only with their commit marker, which lists every file with its size and checksum."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailor.errors import StoreError
from tailor.store.cache import cache_folder
from tailor.store.failures import writing

if TYPE_CHECKING:
    from tailor.store.store import Store

COMMIT = "COMMIT"
TEMPORARY = ".tmp-"
_BLOCK = 1 << 22


class Publication:
    """A folder that is being made. Readers see it from `commit` on, and never a half of it.

    `folder` is where its files are written: beside its final place when the store is local (so that
    the commit is a rename), else in this machine's cache.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self.url = store.join(name).url
        temporary = f"{TEMPORARY}{name}-{uuid.uuid4().hex[:8]}"
        if store.is_local:
            store.make()
            self.folder = store.local_path(temporary)
        else:
            self.folder = uploads(store.url) / temporary
        self.folder.mkdir(parents=True)

    def __enter__(self) -> Publication:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Commit; after an error inside, discard."""
        if kind is None:
            self.commit()
        else:
            self.discard()

    def commit(self, before_marker: Callable[[], None] = lambda: None) -> None:
        """Make the folder appear under its name, in place of an earlier one. `before_marker` runs before it counts.

        When it fails, everything stays in `folder`.
        """
        with writing(self._store.url if self._store.is_local else str(self.folder)):
            marker = {name: _describe(self.folder / name, sync=True) for name in _files(self.folder)}
            (self.folder / COMMIT).write_text(json.dumps(marker, indent=1) + "\n")
        if self._store.is_local:
            before_marker()
            with writing(self._store.url):
                self._take_the_name()
            return
        self._store.remove(self._name)
        for name in marker:
            self._store.put_file(self.folder / name, f"{self._name}/{name}")
        before_marker()
        self._store.put_file(self.folder / COMMIT, f"{self._name}/{COMMIT}")
        self.discard()

    def discard(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _take_the_name(self) -> None:
        target = self._store.local_path(self._name)
        if target.exists():
            aside = self.folder.with_name(f"{self.folder.name}-before")
            os.rename(target, aside)
            os.rename(self.folder, target)
            shutil.rmtree(aside)
        else:
            os.rename(self.folder, target)
        _sync(target.parent)


def uploads(url: str) -> Path:
    """Where this machine keeps what goes to the remote folder `url`, until it is there."""
    return cache_folder() / "uploads" / hashlib.sha256(url.encode()).hexdigest()[:16]


def verified(store: Store, name: str) -> Path:
    """A local path of the committed folder `name`, every file compared with its size and checksum in the marker.

    Raises a StoreError that names the first file that is missing or was changed.
    """
    marker = store.read_json(f"{name}/{COMMIT}")
    folder = store.local_path(name)
    for file, written in marker.items():
        path, shown = folder / file, store.url_of(f"{name}/{file}")
        if not path.is_file():
            raise _damaged(store, name, f"{shown} is missing")
        if path.stat().st_size != written["bytes"]:
            raise _damaged(
                store, name, f"{shown} has {path.stat().st_size} bytes; {written['bytes']} were written"
            )
        if _describe(path) != written:
            raise _damaged(store, name, f"{shown} is not the file that was written: its checksum differs")
    return folder


def _damaged(store: Store, name: str, what: str) -> StoreError:
    return StoreError(what, mend=f"bring the file back, or remove {store.url_of(name)} to do without it")


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _describe(path: Path, *, sync: bool = False) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while block := source.read(_BLOCK):
            digest.update(block)
        if sync:
            os.fsync(source.fileno())
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
