"""Layers of a file: its base, the file, and the overrides of the command line.

The base is that of `extends: base.yaml`; overrides are written `section.key=value`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

from tailor.errors import Problem, RecipeError
from tailor.redaction import is_secret
from tailor.spec.base import File
from tailor.spec.reading.source import MAX_DEPTH, Document, Path, Position, dotted, parse

EXTENDS = "extends"
COMMAND_LINE = "command line"
_MAX_BYTES = 1 << 20
_INDEX = re.compile(r"[0-9]{1,9}")
"""A step of an override that is the index of a list's item."""


def read_layers(file: str, root: type[File]) -> Document:
    """The values of a file on top of those of its base. Raises RecipeError if a file cannot be read or parsed."""
    document = _read(file, root)
    if EXTENDS not in document.values:
        return document
    position = document.at_value((EXTENDS,))
    name = document.values.pop(EXTENDS)
    if not isinstance(name, str):
        document.problems.append(
            position.problem((EXTENDS,), f"must be the path of a {root.noun}, relative to this file")
        )
        raise RecipeError(document.problems)
    if is_secret(name):
        document.problems.append(
            position.problem((EXTENDS,), f"contains a secret; put secrets into {root.secrets_location}")
        )
        raise RecipeError(document.problems)
    base_file = FilePath(file).parent / name
    if base_file.is_file() and base_file.samefile(file):
        document.problems.append(
            position.problem((EXTENDS,), f"is this file itself; remove it, or name another {root.noun}")
        )
        raise RecipeError(document.problems)
    try:
        base = _read(str(base_file), root)
    except RecipeError as error:
        (problem, *_) = error.problems
        if not problem.line:
            problem = position.problem((EXTENDS,), f"{problem.file}: {problem.message}")
        document.problems.append(problem)
        raise RecipeError(document.problems) from None
    if EXTENDS in base.values:
        del base.values[EXTENDS]
        base.problems.append(
            base.at_key((EXTENDS,)).problem(
                (EXTENDS,),
                f"{file} extends this file, and a base cannot extend another file; move the keys into one base",
            )
        )
    return merge(base, document)


def merge(base: Document, over: Document) -> Document:
    """`over` on top of `base`. Mappings are merged key by key; any other value replaces the one in the base."""
    base.forget(
        {
            path
            for path in over.positions
            if not (isinstance(over.get(path), dict) and isinstance(base.get(path), dict))
        }
    )
    return Document(
        over.file,
        _merged(base.values, over.values),
        {**base.keys, **over.keys},
        {**base.positions, **over.positions},
        {**base.written, **over.written},
        base.problems + over.problems,
    )


def _merged(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}
    return over


def override(document: Document, arguments: Sequence[str]) -> None:
    """Apply each `section.key=value`. The value is YAML, as in a file. Problems are added to the document."""
    position = Position(COMMAND_LINE)
    seen: set[Path] = set()
    for argument in arguments:
        key, equals, text = argument.partition("=")
        path = tuple(int(step) if _INDEX.fullmatch(step) else step for step in key.strip().split("."))
        if not equals or "" in path:
            shown = "an argument" if is_secret(argument) else argument
            document.problems.append(
                position.problem((), f"{shown} is not an override; write section.key=value")
            )
            continue
        value = parse(text, COMMAND_LINE)
        if len(path) > MAX_DEPTH:
            document.problems.append(
                position.problem(
                    path[:3], f"nested {len(path)} levels deep; at most {MAX_DEPTH} are possible"
                )
            )
            continue
        if path in seen:
            error: str | None = "given twice; remove one of them"
        elif value.problems:
            error = value.problems[0].message
        else:
            error = _set(document, path, value.values)
        if error:
            document.problems.append(position.problem(path, error))
            continue
        seen.add(path)
        document.forget([path])
        for depth in range(1, len(path) + 1):
            document.keys.setdefault(path[:depth], position)
        document.keys |= {path + inner: position for inner in value.keys}
        document.positions |= {path + inner: position for inner in value.positions}
        document.positions.setdefault(path, position)
        document.written |= {path + inner: written for inner, written in value.written.items()}


def _set(document: Document, path: Path, value: Any) -> str | None:
    """Set one value and create the sections above it. Returns the error message if it is not possible."""
    target = document.values
    for depth, step in enumerate(path):
        above = dotted(path[:depth])
        if isinstance(target, list):
            if not isinstance(step, int):
                return f"{above} is a list; write {above}.0.{dotted(path[depth:])}"
            if step > len(target):
                return f"{above} has no item {step}; it has {len(target)}, counted from 0"
            if step == len(target):
                target.append(None)
        elif isinstance(target, dict):
            step = str(step)
            target.setdefault(step, None)
        else:
            return f"{above} is a single value and has no keys; write {above}=VALUE"
        if depth == len(path) - 1:
            target[step] = value
        else:
            if target[step] is None:
                target[step] = {}
            target = target[step]
    return None


def _read(file: str, root: type[File]) -> Document:
    """Read one file. Raises RecipeError if it cannot be read or is not a mapping."""
    try:
        path = FilePath(file)
        if path.is_dir():
            raise _error(file, f"is a folder, not a {root.noun}{_files_in(path)}")
        if path.stat().st_size > _MAX_BYTES:
            raise _error(file, f"is larger than {_MAX_BYTES} bytes, which is too large for a {root.noun}")
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise _error(file, f"no such file{_near(file, root.folder)}") from None
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise _error(
            file, f"byte {error.object[error.start]:#04x} is not UTF-8; save the file in UTF-8", line, column
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _error(file, f"cannot be read: {reason.lower()}") from None
    document = parse(text, file)
    if document.values is None and document.problems:
        raise RecipeError(document.problems)
    if document.values is None:
        raise _error(file, f"empty; {root.start}", 1, 1)
    if not isinstance(document.values, dict):
        position = document.at_value(())
        raise _error(
            file,
            f"a {root.noun} must be a mapping of sections, such as {root.example}",
            position.line,
            position.column,
        )
    return document


def _error(file: str, message: str, line: int = 0, column: int = 0) -> RecipeError:
    return RecipeError([Problem(file, line, column, "", message)])


def _near(file: str, default_folder: str) -> str:
    """A hint with the file of the most similar name, in the folder of the path or in the default folder."""
    path = FilePath(file)
    known: dict[str, str] = {}
    for folder in (FilePath(default_folder), path.parent):
        if folder.is_dir():
            known |= {
                found.stem: str(found)
                for found in sorted(folder.iterdir())
                if found.suffix in (".yaml", ".yml")
            }
    near = difflib.get_close_matches(path.stem, known, n=1)
    return f"; did you mean {known[near[0]]}?" if near else ""


def _files_in(folder: FilePath) -> str:
    files = sorted(str(found) for found in folder.iterdir() if found.suffix in (".yaml", ".yml"))[:5]
    return f"; did you mean {' or '.join(files)}?" if files else ""
