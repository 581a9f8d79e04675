"""Turn pydantic's validation error into problems with positions and hints.

pydantic reports only where a value failed. What is allowed there is described from the spec classes, so messages and
the reference agree.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tailor.errors import MAX_PROBLEMS, Problem
from tailor.redaction import is_secret_key
from tailor.spec.base import File, Section
from tailor.spec.reading import schema_tree
from tailor.spec.reading.overrides import EXTENDS
from tailor.spec.reading.source import Document, Path, Position, dotted
from tailor.spec.reading.value_hints import given, hint_of

_SIMILAR, _ALMOST = 0.7, 0.88
"""Similarity of two names (difflib) for a hint within a section, and in other sections."""
_LONG = 6
"""Characters of a name that is searched in other sections."""
_GENERIC = frozenset(
    (
        "name",
        "type",
        "path",
        "data",
        "config",
        "weights",
        "length",
        "limit",
        "memory",
        "question",
        "questions",
        "min",
        "max",
        "samples",
        "stage",
        "split",
        "task",
        "tasks",
        "factor",
    )
)
"""Keys of several sections that mean something else in each."""

_TAG = ("union_tag_not_found", "union_tag_invalid")


@dataclass(frozen=True)
class _Failure:
    """One of pydantic's errors, with its path in the file and what is allowed there."""

    kind: str
    path: Path
    allowed: schema_tree.Allowed | None
    union: Path | None
    """The path where a plain union (`Literal | list`) was tried, if there was one."""


def explain(error: ValidationError, document: Document, root: type[File]) -> tuple[list[Problem], set[str]]:
    """Every problem, and the existing keys that the unknown keys were probably meant to be."""
    failures = [
        _locate(entry["type"], entry["loc"], document, root)
        for entry in error.errors(include_url=False)
        if entry["type"] != "default_factory_not_called"  # follows from another error of the section
    ]
    problems: list[Problem] = []
    intended: set[Path] = set()
    unknown = [failure.path for failure in failures if failure.kind == "extra_forbidden"]
    for failure in failures:
        if failure.kind in _TAG and failure.allowed:  # pydantic does not validate the keys of these
            known = {key for section in failure.allowed.sections for key in section.model_fields}
            unknown += [(*failure.path, key) for key in document.get(failure.path) if key not in known]
    unknown.sort(key=lambda path: (_order(document.at_key(path)), dotted(path)))  # as a report sorts them
    for number, path in enumerate(unknown):
        # The search for similar keys is slow, and a report shows no more than these.
        message, suggestion = (
            _unknown(path, document, root) if number < MAX_PROBLEMS else ("unknown key", None)
        )
        if suggestion:
            intended.add(suggestion)
        problems.append(document.at_key(path).problem(path, message))
    for failure in _one_per_union(failures):
        path, needed = failure.path, failure.allowed
        if failure.kind == "extra_forbidden" or needed is None:
            continue
        if failure.kind in _TAG:
            path, needed = (*path, "name"), _names(needed)
        if failure.kind in ("missing", "union_tag_not_found"):
            if path not in intended:
                problems.append(document.at_key(path).problem(path, _missing(needed)))
            continue
        problems.append(document.at_value(path).problem(path, _wrong(path, needed, document, root)))
    return problems, {dotted(path) for path in intended}


def _order(position: Position) -> tuple[str, int, int]:
    return position.file, position.line, position.column


def _locate(kind: str, location: Iterable[str | int], document: Document, root: type[Section]) -> _Failure:
    """Translate pydantic's location, which also names union members, into the path in the file."""
    needed: schema_tree.Allowed | None = schema_tree.allowed(root)
    path: Path = ()
    union: Path | None = None
    in_variant = False
    for step in location:
        if needed is None:
            break
        if isinstance(step, int):
            path, needed = (*path, step), needed.item(step)
        elif needed.tagged and not in_variant:
            in_variant = True  # the step is the tag
        elif needed.sections and len(needed.types) > 1 and not needed.tagged:
            union = path  # the step is the member of a plain union that was tried
            if str(step).startswith("tagged-union["):
                needed = schema_tree.Allowed(needed.sections, (), False, tagged=True)
                continue
            needed = next(
                (schema_tree.allowed(one) for one in needed.sections if one.__name__ == step), needed
            )
        elif needed.sections:
            section = schema_tree.variant(needed.sections, document.get(path))
            info = schema_tree.field(section, step) if section else None
            path, needed, in_variant = (*path, step), schema_tree.of_field(info) if info else None, False
        elif needed.mappings:
            path, needed = (*path, step), needed.entry()
        else:
            union = path
    return _Failure(kind, path, needed, union)


def _one_per_union(failures: list[_Failure]) -> list[_Failure]:
    """Keep one failure per value that fits no member of a union.

    It is the one inside the intended member if there is one, else the one of the whole value.
    """
    kept: list[_Failure] = []
    deeper = {
        failure.union
        for failure in failures
        if failure.union is not None and (failure.path != failure.union or failure.kind in _TAG)
    }
    whole: set[Path] = set()
    for failure in failures:
        if failure.union is not None and failure.path == failure.union and failure.kind not in _TAG:
            if failure.union in deeper or failure.union in whole:
                continue
            whole.add(failure.union)
        kept.append(failure)
    return kept


def _names(needed: schema_tree.Allowed) -> schema_tree.Allowed:
    """The values that `name` may have in a tagged union of sections."""
    literals: list[Any] = []
    for section in needed.sections:
        info = schema_tree.field(section, "name")
        if info:
            literals += schema_tree.of_field(info).types
    return schema_tree.Allowed(tuple(literals), (), False)


def _missing(needed: schema_tree.Allowed) -> str:
    if not needed.sections:
        return f"missing key; it must be {schema_tree.describe(needed)}"
    (section, *others) = needed.sections
    required = (
        ["name"] if others else [key for key, info in section.model_fields.items() if info.is_required()]
    )
    return f"missing section; it needs {', '.join(required)}"


def _unknown(path: Path, document: Document, root: type[File]) -> tuple[str, Path | None]:
    """The message for an unknown key, and the key that was probably intended."""
    *above, key = path
    section, siblings = _section_at(tuple(above), document, root)
    own = [*section.model_fields, *([EXTENDS] if section is root else [])]
    start = "unknown section" if not above and isinstance(document.get(path), dict) else "unknown key"
    if is_secret_key(str(key)):
        return (
            f"{start}; a {root.noun} must not contain secrets: put them into {root.secrets_location}",
            None,
        )
    if start == "unknown section" and root.sections.get(str(key)):
        target = tuple(root.sections[str(key)].split("."))
        return f"{start}; did you mean {dotted(target)}?", target
    owners = [
        name for sibling in siblings if key in sibling.model_fields for name in schema_tree.names(sibling)
    ]
    if owners:
        (name, *_) = schema_tree.names(section)
        return f"unknown key of {name}; it is a key of {', '.join(map(str, owners))}", None
    place = ".".join("N" if isinstance(step, int) else str(step) for step in path)
    if above and place in root.migration_hints:
        return f"{start}; {root.migration_hints[place]}", None
    if above and place in root.aliases:
        target = tuple(root.aliases[place].split("."))
        return f"{start}; did you mean {target[-1]}?", target
    index = schema_tree.key_index(root)
    steps = tuple(str(key).split("."))
    if len(steps) > 1 and (*above, *steps) in index.get(steps[-1], ()):
        return (
            f"{start}; dotted keys work only on the command line: in the file, write {steps[-1]} below {steps[-2]}:",
            None,
        )
    elsewhere = _nearest(_meant(str(key), index.get(str(key), ()), above), above)
    if elsewhere:
        return f"{start}; it belongs at {' or '.join(map(dotted, elsewhere))}", _exact(elsewhere)
    near = difflib.get_close_matches(str(key), own, n=1, cutoff=_ALMOST)
    foreign = not near and (key not in index or (not above and key in root.aliases))
    if foreign and key in root.migration_hints:
        return f"{start}; {root.migration_hints[str(key)]}", None
    if foreign and key in root.aliases:
        target = tuple(root.aliases[str(key)].split("."))
        if target[:-1] == tuple(above):
            if target[-1] in own:
                return f"{start}; did you mean {target[-1]}?", target
            others = [
                str(name)
                for one in siblings
                if target[-1] in one.model_fields
                for name in schema_tree.names(one)
            ]
            if others:
                return f"{start}; it is {target[-1]} of {', '.join(others)}", None
        else:
            return f"{start}; it belongs at {dotted(target)}", target
    near = near or difflib.get_close_matches(str(key), own, n=1, cutoff=_SIMILAR)
    if near:
        return f"{start}; did you mean {near[0]}?", (*above, near[0])
    far = difflib.get_close_matches(str(key), index, n=1, cutoff=_ALMOST) if len(str(key)) >= _LONG else []
    if far:
        candidates = _nearest(_meant(far[0], index[far[0]], above), above)
        if candidates:
            return f"{start}; did you mean {' or '.join(map(dotted, candidates))}?", _exact(candidates)
    what = "sections" if not above else "keys here"
    return f"{start}; the {what} are {', '.join(own)}", None


def _meant(
    key: str, paths: tuple[tuple[str, ...], ...], above: list[str | int]
) -> tuple[tuple[str, ...], ...]:
    """The positions that a misplaced key may be meant for. A name such as `path` has a meaning only in its own section."""
    here = tuple("N" if isinstance(step, int) else step for step in above)
    return tuple(
        path
        for path in paths
        if (here and path[: len(here)] == here)
        or (key not in _GENERIC and (path[:1] == here[:1] or not (path[0] == "evaluate" and "tasks" in path)))
    )


def _section_at(
    path: Path, document: Document, root: type[Section]
) -> tuple[type[Section], list[type[Section]]]:
    """The class of the section at a path, and the other classes of its union."""
    needed: schema_tree.Allowed | None = schema_tree.allowed(root)
    section, others = root, []
    for depth, step in enumerate(path, start=1):
        if isinstance(step, int):
            needed = needed.item(step) if needed else None
        else:
            info = schema_tree.field(section, step)
            needed = schema_tree.of_field(info) if info else None
        if needed and needed.sections:
            found = schema_tree.variant(needed.sections, document.get(path[:depth])) or needed.sections[0]
            section, others = found, [other for other in needed.sections if other is not found]
    return section, others


def _nearest(paths: tuple[tuple[str, ...], ...], above: list[str | int]) -> list[tuple[str, ...]]:
    """At most two positions of a key: those below this section if any, else the least nested ones."""
    here = tuple("N" if isinstance(step, int) else step for step in above)
    below = [path for path in paths if here and path[: len(here)] == here]
    candidates = below or list(paths)
    depth = min((len(path) for path in candidates), default=0)
    return [path for path in candidates if len(path) == depth][:2]


def _exact(paths: list[tuple[str, ...]]) -> Path | None:
    return paths[0] if len(paths) == 1 and "N" not in paths[0] else None


def _wrong(path: Path, needed: schema_tree.Allowed, document: Document, root: type[File]) -> str:
    value = document.get(path)
    if needed.sections and value is None:
        return "empty section; add keys to it, or remove it"
    if value in ("", []):
        return f"empty; it must be {schema_tree.describe(needed)}"
    key = ".".join("N" if isinstance(step, int) else str(step) for step in path)
    named = isinstance(value, (str, int)) and not isinstance(value, bool)
    foreign = root.value_hint(key, str(value)) if named else None
    hint = foreign or hint_of(path, value, needed, document)
    return f"{given(path, document)} is not {schema_tree.describe(needed)}" + (f"; {hint}" if hint else "")
