"""A remote file system that fails when it is told to: `faulty://…`, kept in memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem

from tailor.onray.display import Display
from tailor.onray.run import Outcome, execute
from tailor.spec.recipe import Recipe


@dataclass
class Fault:
    """What happens at each `operation` (write, read, list or remove) on a path that `where` is found in."""

    operation: str
    where: str
    error: Callable[[], Exception] | None = None
    times: float = float("inf")
    """How often the error comes before all is well."""
    seconds: float = 0.0
    """How long the operation takes."""
    then: Callable[[], None] = lambda: None
    met: int = field(default=0, init=False)

    def meet(self, operation: str, path: str) -> None:
        if operation != self.operation or not re.search(self.where, path):
            return
        self.met += 1
        self.then()
        time.sleep(self.seconds)
        if self.error is not None and self.met <= self.times:
            raise self.error()


_faults: list[Fault] = []


@contextmanager
def faults(*given: Fault) -> Iterator[None]:
    """While they last."""
    _faults.extend(given)
    try:
        yield
    finally:
        for fault in given:
            _faults.remove(fault)


class Faulty(AbstractFileSystem):  # type: ignore[misc]
    """A memory file system behind the faults of the moment."""

    protocol = "faulty"
    root_marker = "/"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._inner = MemoryFileSystem()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + str(path).removeprefix("faulty://").strip("/")

    def unstrip_protocol(self, name: str) -> str:
        return f"faulty://{self._strip_protocol(name).lstrip('/')}"

    def _at(self, operation: str, path: str) -> str:
        path = self._strip_protocol(path)
        for fault in list(_faults):
            fault.meet(operation, path)
        return f"/faulty{path}"

    def _out(self, info: dict[str, Any]) -> dict[str, Any]:
        return {**info, "name": info["name"].removeprefix("/faulty")}

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        found = [self._out(info) for info in self._inner.ls(self._at("list", path), detail=True)]
        return found if detail else [info["name"] for info in found]

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        return self._out(self._inner.info(self._at("list", path)))

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> bytes:
        return bytes(self._inner.cat_file(self._at("read", path), *arguments, **options))

    def get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        Path(lpath).write_bytes(self.cat_file(rpath))

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        self._inner.pipe_file(self._at("write", path), value)

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        self._inner.pipe_file(self._at("write", rpath), Path(lpath).read_bytes())

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        self._inner.cp_file(self._at("read", path1), self._at("write", path2))

    def _rm(self, path: str) -> None:
        self._inner.rm(self._at("remove", path))

    def rm_file(self, path: str) -> None:
        self._inner.rm_file(self._at("remove", path))

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        self._inner.rm(self._at("remove", path), recursive=recursive)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return self._inner.open(self._at("read", path), mode)


fsspec.register_implementation("faulty", Faulty, clobber=True)


class Lines(Display):
    """A display that keeps the lines that it was given."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def record(self, record: dict[str, Any]) -> None:
        if record["kind"] == "status":
            self.lines.append(record["message"])


def run(recipe: dict[str, Any]) -> tuple[Outcome, list[str]]:
    """A run in this process, and the lines that it told."""
    display = Lines()
    return execute(Recipe.model_validate(recipe), display), display.lines
