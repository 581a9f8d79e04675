"""Folders that exist only with their commit marker, which lists every file with its size and checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tailor.errors import StoreError
from tailor.store.failures import writing
from tailor.store.store import COMMIT, TEMPORARY, Store, uploads

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
        with self._writing():
            self.folder.mkdir(parents=True)

    def __enter__(self) -> Publication:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Commit; after an error inside or in the commit, discard."""
        try:
            if kind is None:
                self.commit()
        finally:
            self.discard()

    def commit(self, guard: Callable[[], None] = lambda: None) -> None:
        """Make the folder appear under its name, in place of an earlier one.

        `guard` is called before each change of the store, the marker's last, and stops it by raising.
        When a commit fails, everything stays in `folder`.
        """
        with self._writing():
            marker = {name: _describe(self.folder / name, sync=True) for name in _files(self.folder)}
            (self.folder / COMMIT).write_text(json.dumps(marker, indent=1) + "\n")
            _sync(self.folder / COMMIT)
        guard()
        if self._store.is_local:
            with self._writing():
                self._take_the_name()
            return
        self._store.remove(self._name)
        for name in [*marker, COMMIT]:
            guard()
            self._store.put_file(self.folder / name, f"{self._name}/{name}")
        for copy in self.folder.parent.glob(f"{TEMPORARY}{self._name}-*"):  # also those of failed attempts
            shutil.rmtree(copy, ignore_errors=True)

    def discard(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def kept(self) -> bool:
        """Whether `folder` holds everything, and stays when the next run sweeps the store."""
        return not self._store.is_local and (self.folder / COMMIT).exists()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        if self._store.is_local:
            return writing(self._store.url)
        return writing(str(self.folder.parent), "TAILOR_CACHE")

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


@contextlib.contextmanager
def verified(store: Store, name: str) -> Iterator[Path]:
    """A local path of the committed folder `name`, every file compared with its size and checksum in the marker.

    A remote folder's copy goes at the end. Raises a StoreError that names the first file that is missing,
    was changed, or was not written with the others.
    """
    with store.borrowed_path(name) as folder:
        verify(store, name, folder)
        yield folder


def verify(store: Store, name: str, folder: Path, *, hashed_bytes: int | None = None) -> None:
    """Compare `folder`, a local path of the committed folder `name`, with its marker.

    hashed_bytes: a folder of more bytes than this is compared by sizes only. None: by checksums always.
    """
    marker = _marker(store, name)
    for file in _files(folder):
        if file not in marker and not file.rpartition("/")[2].startswith("."):
            raise _damaged(store, name, f"{store.url_of(f'{name}/{file}')} was not written with the others")
    for file, written in marker.items():
        path, shown = folder / file, store.url_of(f"{name}/{file}")
        if not path.is_file():
            raise _damaged(store, name, f"{shown} is missing")
        if path.stat().st_size != written["bytes"]:
            raise _damaged(
                store, name, f"{shown} has {path.stat().st_size} bytes; {written['bytes']} were written"
            )
    if hashed_bytes is not None and sum(written["bytes"] for written in marker.values()) > hashed_bytes:
        return
    for file, written in marker.items():
        if _describe(folder / file)["sha256"] != written["sha256"]:
            shown = store.url_of(f"{name}/{file}")
            raise _damaged(store, name, f"{shown} is not the file that was written: its checksum differs")


def _marker(store: Store, name: str) -> dict[str, dict[str, Any]]:
    marker = store.read_json(f"{name}/{COMMIT}")
    if not isinstance(marker, dict) or not all(
        isinstance(entry, dict) and entry.keys() >= {"bytes", "sha256"} for entry in marker.values()
    ):
        raise _damaged(store, name, f"{store.url_of(f'{name}/{COMMIT}')} does not list files")
    return marker


def _damaged(store: Store, name: str, what: str) -> StoreError:
    return StoreError(what, hint=f"bring the file back, or remove {store.url_of(name)} to do without it")


def _files(folder: Path) -> list[str]:
    """Names of the files below a folder, without its marker."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != COMMIT)


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
