"""Read and write JSON files. The content is checked when it is read, so that code behind it never meets odd values.

A file that tailor writes has the key `format_version`. Without the key it is version 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, FiniteFloat, TypeAdapter, ValidationError

from tailor.errors import StoreError
from tailor.store.filesystem import require_readable
from tailor.store.store import Store

VERSION = "format_version"
T = TypeVar("T")


def _moment(value: str) -> str:
    if datetime.fromisoformat(value).tzinfo is None:
        raise ValueError("a time needs a time zone")
    return value


Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]
Number = FiniteFloat
Moment = Annotated[str, AfterValidator(_moment)]
"""A time as ISO 8601 with a time zone."""


@dataclass(frozen=True)
class JsonFile:
    """One kind of JSON file: what it contains, and what to do if a file is not like that.

    shape: the type of the content, a JSON object: a TypedDict or a dataclass of the keys that are read. Further keys are
    allowed. hint: how to repair a damaged file; `{file}` and `{folder}` become its path and its folder. version: of the
    format, to be raised when older readers would misread it; None for a format of another program. required: keys that
    must be there although the shape has defaults for them, because a default would change results.
    """

    shape: Any
    hint: str
    version: int | None = 1
    required: tuple[str, ...] = ()

    def read(self, store: Store, name: str) -> dict[str, Any]:
        """The content of a file in a store. StoreError when it cannot be read, is damaged, or has a newer format."""
        return self.parse(store.read_bytes(name), store.url_of(name))

    def read_path(self, path: Path, url: str | None = None) -> dict[str, Any]:
        """Same as `read` for a local file. url: its name in messages."""
        return self.read(Store(path.parent), path.name) if url is None else self.parse(_bytes(path), url)

    def parse(self, content: bytes, url: str) -> dict[str, Any]:
        """Check the bytes of a file; returns the content without its version. StoreError as in `read`. url: for messages."""
        try:
            if not content.strip():
                raise ValueError("it is empty")
            values = json.loads(content.decode())
            if not isinstance(values, dict):
                raise ValueError("it is not a JSON object")
            if self.version is not None:
                version = values.pop(VERSION, 1)
                if type(version) is not int or version < 1:
                    raise ValueError(f"{VERSION}: {short(version)} is not a version")
                if version > self.version:
                    raise StoreError(
                        f"{url} was written by a newer version of tailor: its format has version {version}, and this "
                        f"version of tailor reads up to {self.version}",
                        hint="install the newer version of tailor (`pip install --upgrade tailor`)",
                    )
            if missing := [key for key in self.required if key not in values]:
                raise ValueError(f"it has no {missing[0]}")
            self.adapter.validate_json(json.dumps(values), strict=True)
        except (
            ValueError,
            RecursionError,
        ) as error:  # UnicodeDecodeError and ValidationError are ValueErrors
            folder = url.rpartition("/")[0]
            raise StoreError(
                f"{url} is damaged: {_reason(error)}", hint=self.hint.format(file=url, folder=folder)
            ) from None
        return values

    def text(self, values: Mapping[str, Any]) -> str:
        """The content of a file with these values. ValueError for NaN and infinity, which are not valid JSON."""
        version = {} if self.version is None else {VERSION: self.version}
        return json.dumps({**version, **values}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, store: Store, name: str, values: Mapping[str, Any]) -> None:
        store.write_text(name, self.text(values))

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """The check of the content, without the version."""
        return TypeAdapter(self.shape)


OBJECT = JsonFile(dict[str, Any], "restore {file} from a copy, or copy the folder again", version=None)
"""A JSON object of another program, such as config.json."""


def made(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from values that `JsonFile` has checked. Keys that it does not have are left out."""
    return TypeAdapter(kind).validate_python(values)


def lines(content: str, url: str, shape: TypeAdapter[Any]) -> list[dict[str, Any]]:
    """The checked objects of a JSONL file. StoreError names the first line that is damaged. url: for messages."""
    found = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line:
            continue
        try:
            value = json.loads(line)
            shape.validate_json(line, strict=True)
        except (ValueError, RecursionError) as error:
            raise StoreError(
                f"{url}:{number}: the line is damaged: {_reason(error)}", hint="remove the line"
            ) from None
        found.append(value)
    return found


def short(value: Any) -> str:
    """A value for a message, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        return (
            f"{where}: {message}, not {short(first['input'])}"
            if first["type"] != "missing"
            else f"it has no {where}"
        )
    if isinstance(error, RecursionError):
        return "its values are nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"it is not valid JSON ({error})"
    return str(error)


def _bytes(path: Path) -> bytes:
    require_readable(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}", hint="copy the folder again") from None
