"""YAML text -> plain values, and the place of every key and value.

Scalars follow YAML 1.2's core schema: `2e-4` is a number, `on` and `yes` are text, `010` is ten.
A duplicate key is a problem. Anchors, aliases, merge keys and tags are refused: a file says
everything where it stands, and `extends` is the one way to share.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from tailor.errors import Problem

Path = tuple["str | int", ...]
"""The way to a value: `("data", "train", 0, "path")`."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEEPEST = 40

_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?[0-9]{1,400}")
_OCTAL = re.compile(r"0o[0-7]{1,400}")
_HEX = re.compile(r"0x[0-9a-fA-F]{1,400}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")


@dataclass(frozen=True)
class Position:
    """A place in a file; lines and columns count from 1. Line 0 means the file or command line as a whole."""

    file: str
    line: int = 0
    column: int = 0

    def problem(self, path: Path, message: str) -> Problem:
        """One line, whatever the file holds."""
        return Problem(self.file, self.line, self.column, _one_line(dotted(path)), _one_line(message))

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass
class Document:
    """Plain values, where each key and value stands, and what was wrong with the text."""

    file: str
    values: Any = None
    keys: dict[Path, Position] = field(default_factory=dict)
    places: dict[Path, Position] = field(default_factory=dict)
    written: dict[Path, str] = field(default_factory=dict)
    """Plain scalars as they stand in the text."""
    problems: list[Problem] = field(default_factory=list)

    def at_key(self, path: Path) -> Position:
        """Where the key stands; for a key that is not there, where the nearest one above it does."""
        while path:
            for places in (self.keys, self.places):
                if path in places:
                    return places[path]
            path = path[:-1]
        return self.places.get((), Position(self.file, 1, 1))

    def at_value(self, path: Path) -> Position:
        return self.places.get(path) or self.at_key(path)

    def get(self, path: Path, default: Any = None) -> Any:
        """The value at the path, or the default where there is none."""
        value = self.values
        for step in path:
            inside = isinstance(step, int) and step < len(value) if isinstance(value, list) else False
            if not inside and not (isinstance(value, dict) and step in value):
                return default
            value = value[step]
        return value

    def forget(self, path: Path) -> None:
        """Drops the places of a value that is replaced."""
        for table in (self.keys, self.places, self.written):
            for known in [known for known in table if known[: len(path)] == path]:
                del table[known]


def dotted(path: Path) -> str:
    return ".".join(str(step) for step in path)


def _one_line(text: str) -> str:
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def parse(text: str, file: str) -> Document:
    """Reads one YAML document. What is wrong with the text goes to `problems`; this never raises."""
    document = Document(file)
    try:
        _Builder(document, yaml.parse(text, Loader=_LOADER)).build()
    except UnicodeEncodeError as error:  # half a character, as a shell can pass it
        document.problems.append(Problem(file, 1, error.start + 1, "", "not UTF-8"))
        document.values = None
    except yaml.YAMLError as error:
        document.problems.append(_syntax(error, text, file))
        document.values = None
    return document


def scalar(text: str) -> Any:
    """The value of an unquoted scalar by YAML 1.2's core schema."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEX.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITY.fullmatch(text):
        return -math.inf if text.startswith("-") else math.inf
    if _NAN.fullmatch(text):
        return math.nan
    return text


class _Builder:
    """Builds a document from the parser's events."""

    def __init__(self, document: Document, events: Iterator[Any]) -> None:
        self.document = document
        self.events = events

    def build(self) -> None:
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents == 2:
                    self._refuse(event, (), "a second document starts here; the file is one document")
                    return
            elif isinstance(event, yaml.NodeEvent):
                self.document.values = self._node(event, ())

    def _node(self, event: Any, path: Path) -> Any:
        place = self._position(event)
        self.document.places[path] = place
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, path, f"aliases (*{event.anchor}) are not read; write the value out")
            return None
        if event.anchor:
            self._refuse(event, path, f"anchors (&{event.anchor}) are not read; leave the anchor out")
        if event.tag:
            self._refuse(event, path, f"tags ({event.tag}) are not read; leave the tag out")
        if isinstance(event, yaml.ScalarEvent):
            if event.style:
                return event.value
            self.document.written[path] = event.value
            return scalar(event.value)
        if len(path) >= _DEEPEST:
            raise yaml.MarkedYAMLError(problem="nested too deep", problem_mark=event.start_mark)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        return self._mapping(path)

    def _sequence(self, path: Path) -> list[Any]:
        items: list[Any] = []
        for event in self.events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self._node(event, (*path, len(items))))
        return items

    def _mapping(self, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for event in self.events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            if not isinstance(event, yaml.ScalarEvent):
                raise yaml.MarkedYAMLError(problem="a key must be plain text", problem_mark=event.start_mark)
            here = (*path, event.value)
            if event.value in values:
                first = self.document.keys[here].line
                self._refuse(event, here, f"duplicate key; it stands in line {first} already")
                self._skip(next(self.events))
                continue
            self.document.keys[here] = self._position(event)
            if event.value == "<<" and not event.style:
                self._refuse(event, here, "merge keys are not read; use extends to share keys")
                self._skip(next(self.events))
                continue
            values[event.value] = self._node(next(self.events), here)
        return values

    def _skip(self, event: Any) -> None:
        """Reads over a value."""
        depth = 0
        while True:
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if not depth:
                return
            event = next(self.events)

    def _position(self, event: Any) -> Position:
        mark = event.start_mark
        return Position(self.document.file, mark.line + 1, mark.column + 1)

    def _refuse(self, event: Any, path: Path, message: str) -> None:
        self.document.problems.append(self._position(event).problem(path, message))


_SYNTAX = {
    "could not find expected ':'": "a key without a colon; write `key: value`",
    "did not find expected key": "the indentation does not fit the lines above, or a quote or bracket is left over",
    "did not find expected '-' indicator": "the indentation does not fit the list above",
    "did not find expected ',' or ']'": "a [ is never closed, or a comma is missing",
    "did not find expected ',' or '}'": "a { is never closed, or a comma is missing",
    "mapping values are not allowed in this context": "a second colon in one line, or a wrong indentation; "
    "put text that holds `: ` in quotes",
    "block sequence entries are not allowed in this context": "a list cannot start here; put `- ` on a line of its own",
    "found unexpected end of stream": "a quote that is opened here is never closed",
}

# The parser complains where it gave up; these are better shown where the construct began.
_SYNTAX_AT_START = (
    "could not find expected ':'",
    "did not find expected ',' or ']'",
    "did not find expected ',' or '}'",
    "found unexpected end of stream",
)


def _syntax(error: yaml.YAMLError, text: str, file: str) -> Problem:
    """The parser's complaint as one line."""
    if not isinstance(error, yaml.MarkedYAMLError):  # yaml.reader.ReaderError: a character YAML forbids
        offset = getattr(error, "position", 0)
        before = text[:offset] if isinstance(offset, int) else ""
        column = len(before) - before.rfind("\n")
        return Problem(
            file, before.count("\n") + 1, column, "", "a control character, which YAML does not allow"
        )
    what = error.problem or "not YAML"
    mark = error.problem_mark
    if what in _SYNTAX_AT_START and error.context_mark:
        mark = error.context_mark
    if mark is None:
        return Problem(file, 1, 1, "", f"not YAML: {what}")
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: mark.column + 1] and not line[: mark.column].strip():
        message = "a tab in the indentation; YAML wants spaces"
    elif "cannot start any token" in what and line[mark.column : mark.column + 1] in ("@", "`", "%"):
        message = f"text cannot start with {line[mark.column]}; put it in quotes"
    else:
        message = _SYNTAX.get(what, what)
    return Problem(file, mark.line + 1, mark.column + 1, "", f"not YAML: {message}")
