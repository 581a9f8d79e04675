"""Parse YAML text into plain values, with the position of every key and value.

Scalars follow the YAML 1.2 core schema: `2e-4` is a number, `on` and `yes` are text, `010` is ten. A duplicate key is
a problem. Anchors, aliases, merge keys and tags are rejected: a file shows each value where it is used, and `extends`
is the only way to share keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from tailor.errors import Problem

Path = tuple["str | int", ...]
"""Path to a value: `("data", "train", 0, "path")`."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_DEPTH = 40

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
    """A position in a file. Lines and columns count from 1; line 0 means the whole file or command line."""

    file: str
    line: int = 0
    column: int = 0

    def problem(self, path: Path, message: str) -> Problem:
        return Problem(self.file, self.line, self.column, dotted(path), message)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass
class Document:
    """Plain values, the position of each key and value, and the problems of the text."""

    file: str
    values: Any = None
    keys: dict[Path, Position] = field(default_factory=dict)
    positions: dict[Path, Position] = field(default_factory=dict)
    """Positions of the values; `keys` has those of the keys."""
    written: dict[Path, str] = field(default_factory=dict)
    """Plain scalars as written in the text."""
    problems: list[Problem] = field(default_factory=list)

    def at_key(self, path: Path) -> Position:
        """Position of the key. For a key that is missing, the position of the nearest section above it."""
        while path:
            for known in (self.keys, self.positions):
                if path in known:
                    return known[path]
            path = path[:-1]
        return self.positions.get((), Position(self.file, 1, 1))

    def at_value(self, path: Path) -> Position:
        return self.positions.get(path) or self.at_key(path)

    def get(self, path: Path, default: Any = None) -> Any:
        """The value at the path, or the default if there is none."""
        value = self.values
        for step in path:
            inside = isinstance(step, int) and step < len(value) if isinstance(value, list) else False
            if not inside and not (isinstance(value, dict) and step in value):
                return default
            value = value[step]
        return value

    def forget(self, paths: Collection[Path]) -> None:
        """Remove the positions of values that are replaced, in one pass over the document."""
        gone = {path for path in paths if path in self.positions or path in self.keys}
        if not gone:
            return
        for table in (self.keys, self.positions, self.written):
            for known in [
                known for known in table if any(known[:depth] in gone for depth in range(len(known) + 1))
            ]:
                del table[known]


def dotted(path: Path) -> str:
    return ".".join(str(step) for step in path)


def parse(text: str, file: str) -> Document:
    """Parse one YAML document. Errors in the text are added to `problems`; this function never raises."""
    document = Document(file)
    try:
        _Builder(document, yaml.parse(text, Loader=_LOADER)).build()
    except UnicodeEncodeError as error:  # a lone surrogate: an argument of the shell with invalid UTF-8
        document.problems.append(Problem(file, 1, error.start + 1, "", "not UTF-8"))
        document.values = None
    except yaml.YAMLError as error:
        document.problems.append(_syntax(error, text, file))
        document.values = None
    return document


def scalar(text: str) -> Any:
    """The value of an unquoted scalar by the YAML 1.2 core schema."""
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
    """Builds a document from the events of PyYAML's parser."""

    def __init__(self, document: Document, events: Iterator[Any]) -> None:
        self.document = document
        self.events = events

    def build(self) -> None:
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents == 2:
                    self._reject(event, (), "a second YAML document starts here; remove the line `---`")
                    return
            elif isinstance(event, yaml.NodeEvent):
                self.document.values = self._node(event, ())

    def _node(self, event: Any, path: Path) -> Any:
        self.document.positions[path] = self._position(event)
        if isinstance(event, yaml.AliasEvent):
            self._reject(event, path, f"aliases (*{event.anchor}) are not supported; write out the value")
            return None
        if event.anchor:
            self._reject(event, path, f"anchors (&{event.anchor}) are not supported; remove the anchor")
        if event.tag:
            self._reject(event, path, f"tags ({event.tag}) are not supported; remove the tag")
        if isinstance(event, yaml.ScalarEvent):
            if event.style:
                return event.value
            self.document.written[path] = event.value
            return scalar(event.value)
        if len(path) >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {MAX_DEPTH} levels deep", problem_mark=event.start_mark
            )
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
                self._reject(event, here, f"duplicate key; it is in line {first} already")
                self._skip(next(self.events))
                continue
            self.document.keys[here] = self._position(event)
            if event.value == "<<" and not event.style:
                self._reject(event, here, "merge keys are not supported; use extends to share keys")
                self._skip(next(self.events))
                continue
            values[event.value] = self._node(next(self.events), here)
        return values

    def _skip(self, event: Any) -> None:
        """Skip a value."""
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

    def _reject(self, event: Any, path: Path, message: str) -> None:
        self.document.problems.append(self._position(event).problem(path, message))


_SYNTAX = {
    "could not find expected ':'": "a key without a colon; write `key: value`",
    "did not find expected key": "the indentation does not match the lines above, or there is an extra quote or bracket",
    "did not find expected '-' indicator": "the indentation does not match the list above",
    "did not find expected ',' or ']'": "a [ is not closed, or a comma is missing",
    "did not find expected ',' or '}'": "a { is not closed, or a comma is missing",
    "mapping values are not allowed in this context": "a second colon in one line, or a wrong indentation; "
    "put text that contains `: ` in quotes",
    "block sequence entries are not allowed in this context": "a list cannot start here; start a new line before `- `",
    "found unexpected end of stream": "a quote that is opened here is not closed",
}

# The parser reports where it stopped. For these errors, the start of the construct is the better position.
_SYNTAX_AT_START = (
    "could not find expected ':'",
    "did not find expected ',' or ']'",
    "did not find expected ',' or '}'",
    "found unexpected end of stream",
)


def _syntax(error: yaml.YAMLError, text: str, file: str) -> Problem:
    """The parser's error as a problem of one line."""
    if not isinstance(error, yaml.MarkedYAMLError):  # yaml.reader.ReaderError: a character that YAML forbids
        offset = getattr(error, "position", 0)
        before = text[:offset] if isinstance(offset, int) else ""
        column = len(before) - before.rfind("\n")
        return Problem(
            file,
            before.count("\n") + 1,
            column,
            "",
            "a control character, which YAML does not allow; remove it",
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
        message = "a tab in the indentation; use spaces"
    elif "cannot start any token" in what and line[mark.column : mark.column + 1] in ("@", "`", "%"):
        message = f"text cannot start with {line[mark.column]}; put it in quotes"
    else:
        message = _SYNTAX.get(what, what)
    return Problem(file, mark.line + 1, mark.column + 1, "", f"not YAML: {message}")
