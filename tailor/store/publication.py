"""Publish folders atomically. A folder is complete when it has its commit marker, which lists sizes and checksums of all files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from tailor.errors import StoreError
from tailor.store.failures import is_full, writing
from tailor.store.json_files import VERSION, Count, JsonFile
from tailor.store.removal import TEMPORARY, DeletionError, Made, refuse_foreign, refuse_link
from tailor.store.scratch import Claim, lock_of
from tailor.store.store import COMMIT, Store, uploads

UPLOADING = ".uploading"
"""While a folder is uploaded: the names of its files, so that an interrupted upload can be distinguished from other files."""
_NOTES = (".md", ".txt", ".rst", ".log", ".csv", ".tsv", ".html", ".pdf", ".png", ".jpg", ".jpeg", ".svg")
_VOCABULARIES = ("vocab.txt", "merges.txt")  # of tokenizers
_BLOCK = 1 << 22


class _Listed(TypedDict):
    bytes: Count
    sha256: str


class _Marker(TypedDict):
    files: dict[str, _Listed]


class _Uploaded(TypedDict):
    files: list[str]


_REPAIR = "restore the file, or remove {folder} if you do not need it"
COMMIT_FILE = JsonFile(_Marker, _REPAIR, version=2)
UPLOADING_FILE = JsonFile(_Uploaded, "remove {folder}, whose upload was interrupted")
_FIRST_COMMIT_FILE = JsonFile(dict[str, _Listed], _REPAIR, version=None)


class Publication:
    """A folder that is being written. Readers see it only after `commit`, and only as a whole.

    folder: the local folder to write files to. For a local store it is next to the final folder, so that
    the commit is a rename; for a remote store it is in this machine's cache.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self.url = store.join(name).url
        require_replaceable(store, name)
        temporary = f"{TEMPORARY}{name}-{uuid.uuid4().hex[:8]}"
        if store.is_local:
            store.make()
            self.folder = store.local_path(temporary)
        else:
            self.folder = uploads(store.url) / temporary
        self._create()

    def _create(self) -> None:
        with self._writing():
            if not self._store.is_local:
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                self._claim = Claim(self.folder)
            self.folder.mkdir(parents=True)

    def __enter__(self) -> Publication:
        return self

    def __exit__(self, kind: object, error: BaseException | None = None, *_: object) -> None:
        """Commit after success. Discard the files after an error in the block or in the commit. StoreError for a full disk."""
        try:
            if kind is None:
                self.commit()
            elif is_full(error):
                with self._writing():
                    raise error
        finally:
            self.discard()

    def commit(self, guard: Callable[[], None] = lambda: None) -> None:
        """Publish the folder under its name, replacing an earlier one. DeletionError when that one has other files.

        guard: called before each change of the store (the marker is the last one); an exception from it stops the commit.
        When a commit fails, all files stay in `folder`.
        """
        with self._writing():
            marker = {name: _describe(self.folder / name, sync=True) for name in _files(self.folder)}
            (self.folder / COMMIT).write_text(COMMIT_FILE.text({"files": marker}))
            _sync(self.folder / COMMIT)
        guard()
        if self._store.is_local:
            with self._writing():
                self._take_the_name()
            return
        require_replaceable(self._store, self._name)
        self._store.remove(self._name)
        UPLOADING_FILE.write(self._store, f"{self._name}/{UPLOADING}", {"files": [*marker, COMMIT]})
        for name in [*marker, COMMIT]:
            guard()
            self._store.put_file(self.folder / name, f"{self._name}/{name}")
        self._store.remove(f"{self._name}/{UPLOADING}")
        for copy in self.folder.parent.glob(f"{TEMPORARY}{self._name}-*"):  # also those of failed attempts
            if copy.is_dir():
                shutil.rmtree(copy, ignore_errors=True)
                lock_of(copy).unlink(missing_ok=True)
        self.discard()

    def discard(self) -> None:
        """Remove the written files."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if not self._store.is_local:
            self._claim.release()

    @property
    def kept(self) -> bool:
        """Whether `folder` is a complete local copy that the next run's cleanup keeps."""
        return not self._store.is_local and (self.folder / COMMIT).exists()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        if self._store.is_local:
            return writing(self._store.url)
        return writing(str(self.folder.parent), "TAILOR_CACHE")

    def _take_the_name(self) -> None:
        target = self._store.local_path(self._name)
        if os.path.lexists(target):
            require_replaceable(self._store, self._name)
            aside = self.folder.with_name(f"{self.folder.name}-before")
            os.rename(target, aside)
            os.rename(self.folder, target)
            shutil.rmtree(aside)
        else:
            os.rename(self.folder, target)
        _sync(target.parent)


def require_replaceable(store: Store, name: str) -> None:
    """DeletionError when a new folder cannot take a name: what has it was not published by tailor, or was added to since.

    On a local disk also when it is a symbolic link, or when a text file in it was changed.
    """
    if store.is_local:
        path = store.local_path(name)
        refuse_link(path, path.parent)
        if path.is_file():
            raise DeletionError(f"{path} is a file", hint="remove it, or choose another folder")
    if not (names := store.files(name)):
        return
    refuse_foreign(store.url_of(name), names, published(store, name))
    if store.is_local and store.is_committed(name):
        for file, written in listed_files(store.join(name)).items():
            path = store.local_path(f"{name}/{file}")
            refuse_link(path, store.local_path(name))
            if path.is_file() and _was_edited(path, written):
                raise DeletionError(
                    f"{path} would be replaced, but it was changed since tailor wrote it",
                    hint="move it to another folder, then run the same command again",
                )


def _was_edited(path: Path, written: dict[str, Any]) -> bool:
    """Whether a file is not what the marker says. Large files are compared by size only."""
    size = path.stat().st_size
    return size != written["bytes"] or (size <= _BLOCK and _describe(path)["sha256"] != written["sha256"])


def published(store: Store, name: str) -> Made:
    """Which files of a folder its publication wrote: those that its marker lists, or a list of an interrupted upload."""
    made = {COMMIT, UPLOADING}
    if store.exists(f"{name}/{COMMIT}"):
        made |= listed_files(store.join(name)).keys()
    elif store.exists(f"{name}/{UPLOADING}"):
        made |= set(UPLOADING_FILE.read(store, f"{name}/{UPLOADING}")["files"])
    return made.__contains__


@contextlib.contextmanager
def verified(store: Store, name: str) -> Iterator[Path]:
    """A local path of the published folder `name`, after comparing every file with its size and checksum in the marker.

    The local copy of a remote folder is removed at the end. StoreError for the first file that is missing, was changed,
    or is not listed in the marker, unless it is a note or a picture.
    """
    with store.borrowed_path(name) as folder:
        verify(store, name, folder)
        yield folder


def verify(store: Store, name: str, folder: Path, *, hashed_bytes: int | None = None) -> None:
    """Compare `folder`, a local path of the published folder `name`, with its marker. StoreError for a difference.

    hashed_bytes: a folder with more bytes than this is compared by file sizes only. None: always by checksums.
    """
    marker = listed_files(store.join(name))
    for file in _files(folder):
        if file not in marker and not _is_note(file):
            raise StoreError(
                f"{store.url_of(f'{name}/{file}')} is not listed in the folder's {COMMIT} file",
                hint="move it to another folder: libraries might load it with the files that are listed",
            )
    for file, written in marker.items():
        path, shown = folder / file, store.url_of(f"{name}/{file}")
        if not path.is_file():
            raise _damaged(store, name, f"{shown} is missing")
        if path.stat().st_size != written["bytes"]:
            raise _damaged(
                store, name, f"{shown} has {path.stat().st_size} bytes instead of {written['bytes']}"
            )
    if hashed_bytes is not None and sum(written["bytes"] for written in marker.values()) > hashed_bytes:
        return
    for file, written in marker.items():
        if _describe(folder / file)["sha256"] != written["sha256"]:
            shown = store.url_of(f"{name}/{file}")
            raise _damaged(store, name, f"{shown} was changed: its checksum differs from {COMMIT}")


def _is_note(file: str) -> bool:
    """Whether a file that somebody added is one that no library loads: a note, a picture, or a hidden file."""
    name = file.rpartition("/")[2].lower()
    return name.startswith(".") or (name.endswith(_NOTES) and not name.endswith(_VOCABULARIES))


def listed_files(folder: Store) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file of a published folder, by name, as its marker lists them.

    StoreError when the marker is damaged or of a newer format.
    """
    content = folder.read_bytes(COMMIT)
    if f'"{VERSION}"'.encode() not in content:  # version 1, which listed the files on the top level
        return _FIRST_COMMIT_FILE.parse(content, folder.url_of(COMMIT))
    files: dict[str, dict[str, Any]] = COMMIT_FILE.parse(content, folder.url_of(COMMIT))["files"]
    return files


def _damaged(store: Store, name: str, what: str) -> StoreError:
    return StoreError(what, hint=f"restore the file, or remove {store.url_of(name)} if you do not need it")


def _files(folder: Path) -> list[str]:
    """Relative names of all files below a folder, without its marker."""
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
