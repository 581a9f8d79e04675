"""Files and folders below one fsspec URL, read and written as a whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, cast

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from tailor.errors import StoreError
from tailor.store.copies import borrowed, copied
from tailor.store.failures import naming, retried, writing
from tailor.store.filesystem import cache_folder, filesystem

COMMIT = "COMMIT"
"""Marker of a whole folder. It lists the files with their sizes and checksums."""
TEMPORARY = ".tmp-"
_BLOCK = 1 << 22
_T = TypeVar("_T")
_answered: set[str] = set()
"""Remote places that did what they were asked, once."""


class Store:
    """A folder at `url`. A plain path is local and relative to the working directory.

    Names are paths below the folder with `/` between the parts. Every failure of the
    file system is a StoreError that names the URL.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        text = os.fspath(url)
        with naming(text):
            # Listings must not be cached: another process may write at any time.
            self._fs, self._root = filesystem(text)
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self.url: str = self._root if self.is_local else self._fs.unstrip_protocol(self._root)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def join(self, *names: str) -> Store:
        """The folder below this one."""
        return Store("/".join([self.url.rstrip("/"), *names]))

    def url_of(self, name: str) -> str:
        """The URL of `name`, for messages."""
        return f"{self.url.rstrip('/')}/{name}" if name else self.url

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder is there. A store that does not answer is an error, not a no."""
        return self._ask(name, lambda: self._is_there(name))

    def is_file(self, name: str = "") -> bool:
        """Whether a file is there, and no folder."""
        return self._ask(name, lambda: bool(self._fs.isfile(self._path(name))))

    def _is_there(self, name: str) -> bool:
        try:
            self._fs.info(self._path(name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def make(self) -> None:
        """Make the folder where folders exist on their own. StoreError when it cannot be written."""
        if self.is_local:
            with self._writing(""):
                os.makedirs(self._root, exist_ok=True)
                # Only a file that was made shows that files can be made.
                with tempfile.TemporaryFile(dir=self._root):
                    pass

    def names(self, name: str = "") -> list[str]:
        """Direct children, sorted, without unfinished temporary ones. A missing folder has none."""
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

    def read_bytes(self, name: str) -> bytes:
        return self._ask(name, lambda: cast(bytes, self._fs.cat_file(self._path(name))))

    def read_text(self, name: str) -> str:
        return self.read_bytes(name).decode()

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise StoreError(
                f"{self.url_of(name)} is not valid JSON ({error})", hint="remove the file and run again"
            ) from None

    def write_bytes(self, name: str, value: bytes) -> None:
        """Write the whole file or nothing. Readers see the old content or the new one."""
        if self.is_local:
            with self.open(name, "wb") as stream:
                stream.write(value)
        else:
            self._ask(name, lambda: self._fs.pipe_file(self._path(name), value))

    def write_text(self, name: str, value: str) -> None:
        self.write_bytes(name, value.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Write JSON. NaN and infinity are refused (ValueError), because other readers refuse them."""
        self.write_text(name, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def append_text(self, name: str, text: str) -> None:
        """Append all of the text or nothing, creating the file. Object stores cannot append: there it is written anew."""
        if not self.is_local:
            before = self.read_bytes(name) if self.exists(name) else b""
            self.write_bytes(name, before + text.encode())
            return
        with self._writing(name):
            path = Path(self._path(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as stream:
                size = stream.tell()
                try:
                    _write_all(stream, text.encode())
                except OSError:
                    stream.truncate(size)
                    raise

    def sync(self, name: str) -> None:
        """Returns when a local file would outlive a loss of power."""
        if self.is_local:
            with self._writing(name), open(self._path(name), "rb") as stream:
                os.fsync(stream.fileno())

    @contextlib.contextmanager
    def open(self, name: str, mode: Literal["rb", "wb"] = "rb") -> Iterator[IO[bytes]]:
        """`with store.open(name, "wb") as stream:` writes atomically; an exception inside leaves no file."""
        path = self._path(name)
        if mode == "rb":
            stream = self._ask(name, lambda: cast("IO[bytes]", self._fs.open(path, "rb")))
            with stream, naming(self.url_of(name), kinds=(OSError,)):
                yield stream
        elif self.is_local:
            with self._writing(name), _replacing(Path(path)) as temporary, temporary.open("wb") as stream:
                yield stream
        else:
            # One put, after everything is there: a stream that fails half-way would leave a half object.
            with naming(self.url_of(name), kinds=(OSError,)), tempfile.NamedTemporaryFile() as stream:
                yield stream
                stream.flush()
                self.put_file(Path(stream.name), name)

    def local_path(self, name: str = "") -> Path:
        """A local path to read a file or folder from: itself when local, else a copy in `cache_folder()`.

        A copy is made once per machine and version of the files, also when several processes ask at once.
        """
        if self.is_local:
            return Path(self._path(name))
        return self._ask(name, lambda: copied(self._fs, self._path(name), Path(name or self._root).name))

    @contextlib.contextmanager
    def borrowed_path(self, name: str = "") -> Iterator[Path]:
        """As `local_path`, of a copy that goes when nobody on this machine reads it any more."""
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
        elif isinstance(self._fs, MemoryFileSystem):  # its own put shows the file while it grows
            self._ask(name, lambda: self._fs.pipe_file(self._path(name), path.read_bytes()))
        else:
            self._ask(name, lambda: self._fs.put_file(str(path), self._path(name)))

    def is_committed(self, name: str) -> bool:
        """Whether a folder was published completely."""
        return self.exists(f"{name}/{COMMIT}")

    def sweep(self) -> None:
        """Remove the folders that lack their marker: their writer died. Only the one writer of all may sweep."""
        self.tidy()
        for name in self.names():
            if not self.is_committed(name):
                self.remove(name)

    def tidy(self) -> None:
        """Remove the temporary files and folders directly in this folder, as `sweep` does."""
        for name in self._children():
            if name.startswith(TEMPORARY):
                self.remove(name)
        self.sweep_uploads()

    def sweep_uploads(self) -> None:
        """Remove this machine's unfinished copies of what was to go here.

        Whole ones stay until a folder of their name is committed.
        """
        if not self.is_local:
            for unfinished in uploads(self.url).glob("*"):
                if not (unfinished / COMMIT).exists():
                    shutil.rmtree(unfinished, ignore_errors=True)

    def remove_temporary(self) -> None:
        """Remove what a dead writer began to write here, whole or not. Only the one writer of all may do so."""
        for name in self._children():
            if name.startswith(TEMPORARY):
                self.remove(name)
        if not self.is_local:
            shutil.rmtree(uploads(self.url), ignore_errors=True)

    def remove(self, name: str) -> None:
        """Remove a file or folder, its marker first. Nothing happens when it is not there."""

        def removed() -> None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self._fs.rm_file(f"{self._path(name)}/{COMMIT}")
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self._fs.rm(self._path(name), recursive=True)

        self._ask(name, removed)

    def rename(self, name: str, to: str) -> bool:
        """Move a folder or file to a new name, in one step where the file system can.

        Returns False, and leaves both, when `to` is already there on a local disk. On an
        object store every file is copied and the old one removed.
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
        """Call the file system. A remote one that failed is asked again, if it ever answered: else its URL may be wrong."""
        with self._naming(name):
            if self.is_local:
                return action()
            place = self._fs.unstrip_protocol(self._root.split("/")[0])
            answer = retried(action) if place in _answered else action()
            _answered.add(place)
            return answer

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    def _naming(self, name: str) -> contextlib.AbstractContextManager[None]:
        return naming(self.url_of(name), kinds=(OSError,) if self.is_local else (Exception,))

    def _writing(self, name: str) -> contextlib.AbstractContextManager[None]:
        """As `_naming`. A local folder is named as a whole: it is what the user chose."""
        return writing(self.url) if self.is_local else self._naming(name)


def _write_all(stream: IO[bytes], content: bytes) -> None:
    """An unbuffered write may take a part only."""
    rest = memoryview(content)
    while rest:
        rest = rest[stream.write(rest) :]


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` at the end, or goes away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def uploads(url: str) -> Path:
    """Where this machine keeps what goes to the remote folder `url`, until it is there."""
    return cache_folder() / "uploads" / hashlib.sha256(url.encode()).hexdigest()[:16]
