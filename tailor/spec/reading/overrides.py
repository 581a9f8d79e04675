"""The layers of a file: `extends: base.yaml` below the file, `section.key=value` of the command line above it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

from tailor.errors import Problem, RecipeError
from tailor.spec.base import File
from tailor.spec.reading import secrets
from tailor.spec.reading.source import Document, Path, Position, dotted, parse

EXTENDS = "extends"
COMMAND_LINE = "command line"
_MAX_BYTES = 1 << 20


def read_layers(file: str, root: type[File]) -> Document:
    """The values of a file on top of those of its base. Raises RecipeError when nothing can be judged."""
    document = _read(file, root)
    if EXTENDS not in document.values:
        return document
    where = document.at_value((EXTENDS,))
    name = document.values.pop(EXTENDS)
    if not isinstance(name, str):
        document.problems.append(
            where.problem((EXTENDS,), f"it must be the path of a {root.noun}, seen from this file")
        )
        raise RecipeError(document.problems)
    try:
        base = _read(str(FilePath(file).parent / name), root)
    except RecipeError as error:
        (problem, *_) = error.problems
        if not problem.line:
            problem = where.problem((EXTENDS,), f"{problem.file}: {problem.message}")
        document.problems.append(problem)
        raise RecipeError(document.problems) from None
    if EXTENDS in base.values:
        del base.values[EXTENDS]
        base.problems.append(
            base.at_key((EXTENDS,)).problem(
                (EXTENDS,),
                f"{file} extends this file, and a base cannot extend another; put the keys together",
            )
        )
    return merge(base, document)


def merge(base: Document, over: Document) -> Document:
    """`over` on top of `base`: mappings merge key by key, anything else replaces what was there."""
    for path in list(over.places):
        value = over.get(path)
        if not (isinstance(value, dict) and isinstance(base.get(path), dict)):
            base.forget(path)
    return Document(
        over.file,
        _merged(base.values, over.values),
        {**base.keys, **over.keys},
        {**base.places, **over.places},
        {**base.written, **over.written},
        base.problems + over.problems,
    )


def _merged(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}
    return over


def override(document: Document, arguments: Sequence[str]) -> None:
    """Sets each `section.key=value`; a value is read like one in a file. Problems go to the document."""
    place = Position(COMMAND_LINE)
    seen: set[Path] = set()
    for argument in arguments:
        key, equals, text = argument.partition("=")
        path = tuple(int(step) if step.isdecimal() else step for step in key.strip().split("."))
        if not equals or "" in path:
            shown = "an argument" if secrets.is_secret(argument) else argument
            document.problems.append(place.problem((), f"{shown}: an override is written section.key=value"))
            continue
        value = parse(text, COMMAND_LINE)
        if path in seen:
            refusal: str | None = "given twice"
        elif value.problems:
            refusal = value.problems[0].message
        else:
            refusal = _set(document, path, value.values)
        if refusal:
            document.problems.append(place.problem(path, refusal))
            continue
        seen.add(path)
        document.forget(path)
        for depth in range(1, len(path) + 1):
            document.keys.setdefault(path[:depth], place)
        document.keys |= {path + inner: place for inner in value.keys}
        document.places |= {path + inner: place for inner in value.places}
        document.places.setdefault(path, place)
        document.written |= {path + inner: written for inner, written in value.written.items()}


def _set(document: Document, path: Path, value: Any) -> str | None:
    """Sets one value and makes the sections above it; says why when it cannot."""
    target = document.values
    for depth, step in enumerate(path):
        above = dotted(path[:depth])
        if isinstance(target, list):
            if not isinstance(step, int):
                return f"{above} is a list; write {above}.0.{dotted(path[depth:])}"
            if step > len(target):
                return f"there is no item {step} in {above}; it has {len(target)}, counted from 0"
            if step == len(target):
                target.append(None)
        elif isinstance(target, dict):
            step = str(step)
            target.setdefault(step, None)
        else:
            return f"{above} is a single value and has no keys"
        if depth == len(path) - 1:
            target[step] = value
        else:
            if target[step] is None:
                target[step] = {}
            target = target[step]
    return None


def _read(file: str, root: type[File]) -> Document:
    """One file. Raises RecipeError when it cannot be read, or holds no mapping."""
    try:
        path = FilePath(file)
        if path.is_dir():
            raise _refusal(file, f"a folder, not a {root.noun}{_one_of(path)}")
        if path.stat().st_size > _MAX_BYTES:
            raise _refusal(file, f"over {_MAX_BYTES} bytes, too large for a {root.noun}")
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise _refusal(file, f"no such file{_near(file, root.folder)}") from None
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise _refusal(file, f"byte {error.object[error.start]:#04x} is not UTF-8", line, column) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _refusal(file, f"cannot be read: {reason.lower()}") from None
    document = parse(text, file)
    if document.values is None and document.problems:
        raise RecipeError(document.problems)
    if document.values is None:
        raise _refusal(file, f"empty; {root.start}", 1, 1)
    if not isinstance(document.values, dict):
        place = document.at_value(())
        raise _refusal(
            file, f"a {root.noun} is a mapping of sections, such as {root.example}", place.line, place.column
        )
    return document


def _refusal(file: str, message: str, line: int = 0, column: int = 0) -> RecipeError:
    return RecipeError([Problem(file, line, column, "", message)])


def _near(file: str, usual: str) -> str:
    """Files with a similar name in the folder that was named and in the usual one."""
    path = FilePath(file)
    known: dict[str, str] = {}
    for folder in (FilePath(usual), path.parent):
        if folder.is_dir():
            known |= {
                found.stem: str(found)
                for found in sorted(folder.iterdir())
                if found.suffix in (".yaml", ".yml")
            }
    near = difflib.get_close_matches(path.stem, known, n=1)
    return f"; did you mean {known[near[0]]}?" if near else ""


def _one_of(folder: FilePath) -> str:
    files = sorted(str(found) for found in folder.iterdir() if found.suffix in (".yaml", ".yml"))[:5]
    return f"; did you mean {' or '.join(files)}?" if files else ""
