"""Read and write whole files and folders below an fsspec URL."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, cast

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from tailor.errors import StoreError
from tailor.store.copies import borrowed, copied
from tailor.store.failures import naming, retried, writing
from tailor.store.filesystem import cache_folder, filesystem, require_readable
from tailor.store.removal import (
    TEMPORARY,
    Made,
    is_temporary,
    local_files,
    refuse_foreign,
    refuse_link,
    remove_local,
)
from tailor.store.scratch import lock_of, scratch

COMMIT = "COMMIT"
"""Marker of a complete folder. It lists the files with their sizes and checksums."""
_BLOCK = 1 << 22
_T = TypeVar("_T")
_reached: set[str] = set()
"""Buckets (or hosts) to which a request has succeeded at least once in this process."""


class Store:
    """A folder at `url`. A plain path is local and relative to the working directory.

    Names are relative paths below the folder, separated by `/`. Every error of the file system is raised as a
    StoreError with the URL.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        text = os.fspath(url)
        if "\0" in text:
            raise StoreError(f"{text} is not a path: it contains a null byte")
        with naming(text):
            # Listings are not cached, because another process may write at any time.
            self._fs, self._root = filesystem(text)
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self.url: str = self._root if self.is_local else self._fs.unstrip_protocol(self._root)
        self._anchor = self._root
        """The folder that the caller named. It may be a symbolic link; below it, nothing is deleted through links."""

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def join(self, *names: str) -> Store:
        """The folder below this one."""
        below = Store("/".join([self.url.rstrip("/"), *names]))
        below._anchor = self._anchor
        return below

    def url_of(self, name: str) -> str:
        """The URL of `name`, for messages."""
        return f"{self.url.rstrip('/')}/{name}" if name else self.url

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder exists. StoreError when the store does not respond."""
        return self._ask(name, lambda: self._is_there(name))

    def is_file(self, name: str = "") -> bool:
        """Whether a file, not a folder, has this name."""
        return self._ask(name, lambda: bool(self._fs.isfile(self._path(name))))

    def _is_there(self, name: str) -> bool:
        try:
            self._fs.info(self._path(name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def make(self) -> None:
        """Create the folder if the store is local; object stores need none. StoreError when it is not writable."""
        if self.is_local:
            with self._writing(""):
                os.makedirs(self._root, exist_ok=True)
                # The only reliable test for write permission is to create a file.
                with tempfile.TemporaryFile(dir=self._root):
                    pass

    def names(self, name: str = "") -> list[str]:
        """Sorted names of the direct children, without temporary ones. Empty for a missing folder."""
        return [child for child in self._children(name) if not child.startswith(TEMPORARY)]

    def _children(self, name: str = "") -> list[str]:
        def listed() -> list[str]:
            try:
                return list(self._fs.ls(self._path(name), detail=False))
            except FileNotFoundError:
                return []

        children = self._ask(name, listed)
        here = {
            child.rstrip("/").rsplit("/", 1)[-1]
            for child in children
            if child.rstrip("/") != self._path(name)
        }
        return sorted(here)

    def size(self, name: str) -> int:
        """Size of a file in bytes."""
        return self._ask(name, lambda: int(self._fs.size(self._path(name))))

    def lists(self, name: str) -> bool:
        """Whether the listing of the folder has a child of this name."""
        return name in self._children()

    def modified(self, name: str) -> float:
        """Time of the last change of a file by the store's clock, in seconds since 1970."""
        return self._ask(name, lambda: utc_seconds(self._fs.modified(self._path(name))))

    def read_bytes(self, name: str) -> bytes:
        if self.is_local:
            require_readable(Path(self._path(name)))
        return self._ask(name, lambda: cast(bytes, self._fs.cat_file(self._path(name))))

    def read_text(self, name: str) -> str:
        try:
            return self.read_bytes(name).decode()
        except UnicodeDecodeError as error:
            raise StoreError(
                f"{self.url_of(name)} is not UTF-8 text ({error.reason} at byte {error.start})",
                hint="restore the file, or save it as UTF-8",
            ) from None

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise StoreError(
                f"{self.url_of(name)} is not valid JSON ({error})",
                hint="remove the file and run the same command again",
            ) from None

    def write_bytes(self, name: str, value: bytes) -> None:
        """Write a file atomically: readers see either the old or the new content."""
        if self.is_local:
            with self.open(name, "wb") as stream:
                stream.write(value)
        else:
            self._ask(name, lambda: self._fs.pipe_file(self._path(name), value))

    def write_text(self, name: str, value: str) -> None:
        self.write_bytes(name, value.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Write JSON. ValueError for NaN and infinity, which are not valid JSON."""
        self.write_text(name, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def append_text(self, name: str, text: str) -> None:
        """Append the text atomically; creates the file. On object stores, which cannot append, the file is rewritten."""
        if not self.is_local:
            before = self.read_bytes(name) if self.exists(name) else b""
            self.write_bytes(name, before + text.encode())
            return
        with self._writing(name):
            path = self._unlinked(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as stream:
                size = stream.tell()
                try:
                    _write_all(stream, text.encode())
                except OSError:
                    stream.truncate(size)
                    raise

    def sync(self, name: str) -> None:
        """Flush a local file to disk (fsync), so that it survives a power failure."""
        if self.is_local:
            with self._writing(name), open(self._path(name), "rb") as stream:
                os.fsync(stream.fileno())

    @contextlib.contextmanager
    def open(self, name: str, mode: Literal["rb", "wb"] = "rb") -> Iterator[IO[bytes]]:
        """Open a file. Writing is atomic: the file appears at the end of the `with` block, and not after an exception."""
        path = self._path(name)
        if mode == "rb":
            if self.is_local:
                require_readable(Path(path), max_bytes=None)
            stream = self._ask(name, lambda: cast("IO[bytes]", self._fs.open(path, "rb")))
            with stream, naming(self.url_of(name), kinds=(OSError,)):
                yield stream
        elif self.is_local:
            with (
                self._writing(name),
                _replacing(self._unlinked(name)) as temporary,
                temporary.open("wb") as stream,
            ):
                yield stream
        else:
            # Upload once at the end: an interrupted stream would leave a partial object.
            with naming(self.url_of(name), kinds=(OSError,)), scratch() as folder:
                with (folder / "upload").open("wb") as stream:
                    yield stream
                self.put_file(folder / "upload", name)

    def local_path(self, name: str = "") -> Path:
        """A local path of a file or folder: the path itself if the store is local, else a copy in `cache_folder()`.

        A copy is made once per machine and version of the files, also when several processes need it at the same time.
        """
        if self.is_local:
            return Path(self._path(name))
        return self._ask(name, lambda: copied(self._fs, self._path(name), Path(name or self._root).name))

    @contextlib.contextmanager
    def borrowed_path(self, name: str = "") -> Iterator[Path]:
        """Same as `local_path`, but the copy is removed when no process of this machine uses it any more."""
        if self.is_local:
            yield Path(self._path(name))
            return
        with contextlib.ExitStack() as stack:
            yield self._ask(
                name,
                lambda: stack.enter_context(
                    borrowed(self._fs, self._path(name), Path(name or self._root).name)
                ),
            )

    def put_file(self, path: Path, name: str) -> None:
        """Copy a local file to `name`."""
        if self.is_local:
            with path.open("rb") as source, self.open(name, "wb") as target:
                shutil.copyfileobj(source, target, _BLOCK)
        elif isinstance(self._fs, MemoryFileSystem):  # its `put_file` is not atomic
            self._ask(name, lambda: self._fs.pipe_file(self._path(name), path.read_bytes()))
        else:
            self._ask(name, lambda: self._fs.put_file(str(path), self._path(name)))

    def get_file(self, name: str, path: Path) -> None:
        """Copy `name` to a local file."""
        self._ask(name, lambda: self._fs.get_file(self._path(name), str(path)))

    def is_committed(self, name: str) -> bool:
        """Whether a folder has been published completely."""
        return self.exists(f"{name}/{COMMIT}")

    def files(self, name: str = "") -> list[str]:
        """Names of all files below a folder, relative to it; on a local disk also links, which are not followed."""
        if self.is_local:
            return local_files(Path(self._path(name)))
        start = len(self._path(name).rstrip("/")) + 1
        return [path[start:] for path in self._ask(name, lambda: list(self._fs.find(self._path(name))))]

    def sweep(self, of: re.Pattern[str], made: Made) -> None:
        """Remove folders without a commit marker, left by interrupted writers. Only the store's single writer may call it.

        of: the names that the writer gives to its folders; others stay. made: the files in them. DeletionError for a folder
        of such a name that has other files, or is a link.
        """
        self.tidy()
        for name in self.names():
            if of.fullmatch(name) and not self.is_committed(name):
                self.remove(name, made)

    def tidy(self) -> None:
        """Remove temporary files and folders directly in this folder. Only the store's single writer may call it."""
        for name in self._children():
            if is_temporary(name):
                self.remove(name)
        self.sweep_uploads()

    def sweep_uploads(self, *, complete: bool = False) -> None:
        """Remove this machine's incomplete local folders that were to be uploaded here.

        Complete ones stay until a folder with their name is committed, unless `complete`.
        """
        if not self.is_local:
            for unfinished in uploads(self.url).glob(f"{TEMPORARY}*"):
                if unfinished.is_dir() and (complete or not (unfinished / COMMIT).exists()):
                    shutil.rmtree(unfinished, ignore_errors=True)  # never follows a link
                    lock_of(unfinished).unlink(missing_ok=True)

    def remove_temporary(self) -> None:
        """Remove everything that an interrupted writer left, complete or not. Only the store's single writer may call it."""
        self.tidy()
        self.sweep_uploads(complete=True)

    def remove(self, name: str, made: Made | None = None) -> None:
        """Remove a file or folder, its commit marker first. Does nothing when it does not exist.

        made: whether tailor makes a file of this name in the folder; None when the folder's own name shows that tailor made
        it. DeletionError, before anything is removed, for other files, and on a local disk for symbolic links.
        """
        if self.is_local:
            self._ask(name, lambda: remove_local(Path(self._path(name)), Path(self._anchor), COMMIT, made))
            return
        if made is not None:
            refuse_foreign(self.url_of(name), self.files(name), made)

        def removed() -> None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self._fs.rm_file(f"{self._path(name)}/{COMMIT}")
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self._fs.rm(self._path(name), recursive=True)

        self._ask(name, removed)

    def rename(self, name: str, to: str) -> bool:
        """Rename a file or folder; atomic on a local disk. On an object store every file is copied, then removed.

        Returns False without a change when `to` already exists on a local disk.
        """
        if not self.is_local:
            self._ask(name, lambda: self._move(self._path(name), self._path(to)))
            return True
        with self._naming(name):
            try:
                os.rename(self._path(name), self._path(to))
            except OSError:
                if os.path.exists(self._path(to)):
                    return False
                raise
            return True

    def _move(self, path: str, to: str) -> None:
        if not (files := self._fs.find(path)):
            raise FileNotFoundError(path)
        for file in files:
            self._fs.cp_file(file, to + file[len(path) :])
        self._fs.rm(path, recursive=True)

    def _ask(self, name: str, action: Callable[[], _T]) -> _T:
        """Call the file system. Retries a remote store only after a first success, since before the URL may be wrong."""
        with self._naming(name):
            if self.is_local:
                return action()
            bucket = self._fs.unstrip_protocol(self._root.split("/")[0])
            result = retried(action) if bucket in _reached else action()
            _reached.add(bucket)
            return result

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    def _unlinked(self, name: str) -> Path:
        """The local path of a file to write. DeletionError for a symbolic link: its target is not tailor's file."""
        path = Path(self._path(name))
        refuse_link(path, path.parent)
        return path

    def _naming(self, name: str) -> contextlib.AbstractContextManager[None]:
        return naming(self.url_of(name), kinds=(OSError,) if self.is_local else (Exception,))

    def _writing(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Same as `_naming`, for writing. Errors in a local store name the store's folder, which the user has set."""
        return writing(self.url) if self.is_local else self._naming(name)


def _write_all(stream: IO[bytes], content: bytes) -> None:
    """Write everything: a single unbuffered write may write only a part."""
    rest = memoryview(content)
    while rest:
        rest = rest[stream.write(rest) :]


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary path next to `path`, which is renamed to `path` at the end and removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def utc_seconds(moment: datetime) -> float:
    """Seconds since 1970 of a time; a time without a zone is in UTC."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def uploads(url: str) -> Path:
    """The local folder for files that are to be uploaded to the remote folder `url`."""
    return cache_folder() / "uploads" / hashlib.sha256(url.encode()).hexdigest()[:16]
