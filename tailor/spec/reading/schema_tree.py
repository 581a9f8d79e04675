"""The keys of each section and what their values may be, read from the spec classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as bounds
from pydantic.fields import FieldInfo

from tailor.spec.base import NameOf, Section

NONE = type(None)


@dataclass(frozen=True)
class Allowed:
    """What a value may be, without `null` and without the wrapper Annotated."""

    types: tuple[Any, ...]
    metadata: tuple[Any, ...]
    optional: bool
    tagged: bool = False
    """Whether it is a union of sections, chosen by their `name`."""

    @property
    def sections(self) -> tuple[type[Section], ...]:
        return tuple(kind for kind in self.types if _is_section(kind))

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of the Literals among the types."""
        return tuple(value for kind in self.types if get_origin(kind) is Literal for value in get_args(kind))

    @property
    def lists(self) -> bool:
        return any(get_origin(kind) in (list, tuple) for kind in self.types)

    @property
    def mappings(self) -> bool:
        return any(get_origin(kind) is dict for kind in self.types)

    def item(self, index: int) -> Allowed | None:
        """What an item of a list may be. None if the value is not a list."""
        for kind in self.types:
            arguments = get_args(kind)
            if get_origin(kind) is list:
                return allowed(arguments[0])
            if get_origin(kind) is tuple:
                return allowed(arguments[min(index, len(arguments) - 1)])
        return None

    def entry(self) -> Allowed | None:
        """What a value of a mapping may be. None if the value is not a mapping."""
        return next((allowed(get_args(kind)[1]) for kind in self.types if get_origin(kind) is dict), None)


def allowed(annotation: Any, metadata: tuple[Any, ...] = ()) -> Allowed:
    """Read an annotation such as `Annotated[int, Field(ge=1)] | None`."""
    if get_origin(annotation) is Annotated:
        kind, *extra = get_args(annotation)
        tagged = any(isinstance(entry, FieldInfo) and entry.discriminator for entry in extra)
        found = allowed(kind, (*metadata, *_constraints(extra)))
        return replace(found, tagged=True) if tagged else found
    if get_origin(annotation) in (Union, UnionType):
        members = [allowed(member) for member in get_args(annotation)]
        return Allowed(
            tuple(kind for member in members for kind in member.types),
            (*metadata, *(constraint for member in members for constraint in member.metadata)),
            any(member.optional for member in members),
            all(member.tagged for member in members if member.types),
        )
    if annotation is NONE:
        return Allowed((), metadata, True)
    for entry in metadata:
        if isinstance(entry, NameOf):
            return Allowed((Literal.__getitem__(entry.names),), metadata, False)
    return Allowed((annotation,), metadata, False)


def field(section: type[Section], key: str) -> FieldInfo | None:
    return section.model_fields.get(key)


def of_field(info: FieldInfo) -> Allowed:
    found = allowed(info.annotation, tuple(info.metadata))
    return replace(found, tagged=found.tagged or info.discriminator is not None)


def variant(sections: tuple[type[Section], ...], value: Any) -> type[Section] | None:
    """The class for a mapping: the only one, or the one whose `name` the mapping has. None if there is no such class."""
    if len(sections) == 1:
        return sections[0]
    name = value.get("name") if isinstance(value, dict) else None
    return next((section for section in sections if name in names(section)), None)


def names(section: type[Section]) -> tuple[Any, ...]:
    """The values of `name` for a class of a tagged union."""
    info = field(section, "name")
    return of_field(info).choices if info else ()


def list_items(section: type[Section]) -> Iterator[type[Section]]:
    """The sections that are items of lists, at any depth."""
    for info in section.model_fields.values():
        value = of_field(info)
        item = value.item(0)
        inside = item.sections if item else ()
        yield from inside
        for inner in (*inside, *value.sections):
            yield from list_items(inner)


@cache
def key_index(root: type[Section]) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Key -> the paths where it may occur, least nested first. A list index is written `N`."""
    index: dict[str, list[tuple[str, ...]]] = {}
    for path in _paths(root, ()):
        if path not in index.setdefault(path[-1], []):
            index[path[-1]].append(path)
    return {key: tuple(sorted(paths, key=len)) for key, paths in index.items()}


def _paths(section: type[Section], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for key, info in section.model_fields.items():
        here = (*above, key)
        yield here
        value = of_field(info)
        for inner in value.sections:
            yield from _paths(inner, here)
        item = value.item(0)
        for inner in item.sections if item else ():
            yield from _paths(inner, (*here, "N"))


def describe(value: Allowed) -> str:
    """What a value may be, in words: `a whole number of at least 1`."""
    parts: list[str] = []
    if value.tagged and len(value.sections) > 1:
        tags = [str(name) for section in value.sections for name in names(section)]
        return f"a mapping with a name of {', '.join(tags)}"
    if value.choices:
        plain = [str(choice) for choice in value.choices]
        parts.append(plain[0] if len(plain) == 1 else f"one of {', '.join(plain)}")
    tags = [str(name) for section in value.sections for name in names(section)]
    kinds = [kind for kind in value.types if get_origin(kind) is not Literal]
    if value.choices and tags:
        parts.append(f"a mapping whose name is one of {', '.join(tags)}")
        kinds = [kind for kind in kinds if not _is_section(kind)]
    if len(value.sections) == len(kinds) > 2:
        parts.append("a mapping with a name")
    else:
        parts += [_kind(kind, value) for kind in kinds]
    return " or ".join(parts)


def _kind(kind: Any, value: Allowed) -> str:
    if _is_section(kind):
        keys = ", ".join(kind.model_fields)
        return f"a mapping with keys of {keys}"
    if get_origin(kind) is dict:
        (_, entry) = get_args(kind)
        return f"a mapping of text to {'any value' if entry is Any else describe(allowed(entry))}"
    if get_origin(kind) is tuple:
        members = [allowed(member) for member in get_args(kind)]
        return f"a list of {len(members)}, each {describe(members[0])}"
    if get_origin(kind) is list:
        (member,) = get_args(kind)
        if sections := allowed(member).sections:
            first = next(iter(sections[0].model_fields))
            shown = names(sections[0])[0] if len(sections) > 1 else "…"
            return f"a list of mappings, such as [{{{first}: {shown}}}]"
        (inner, *others) = allowed(member).types
        return f"a list of {'values' if others else _PLURAL.get(inner, 'values')}"
    return _SINGULAR.get(kind, str(kind)) + (_range(value.metadata) if kind in (int, float) else "")


_SINGULAR = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_PLURAL = {int: "whole numbers", float: "numbers", bool: "true or false", str: "texts"}


def _range(metadata: tuple[Any, ...]) -> str:
    limits: dict[type, Any] = {}
    for limit in metadata:
        for kind, name in ((bounds.Gt, "gt"), (bounds.Ge, "ge"), (bounds.Lt, "lt"), (bounds.Le, "le")):
            if isinstance(limit, kind):
                limits[kind] = getattr(limit, name)
    if bounds.Ge in limits and bounds.Le in limits:
        return f" from {limits[bounds.Ge]} to {limits[bounds.Le]}"
    words = {bounds.Gt: "over", bounds.Ge: "of at least", bounds.Lt: "under", bounds.Le: "of at most"}
    parts = [f"{word} {limits[kind]}" for kind, word in words.items() if kind in limits]
    return f" {' and '.join(parts)}" if parts else ""


def _constraints(metadata: list[Any]) -> Iterator[Any]:
    for entry in metadata:
        if isinstance(entry, FieldInfo):
            yield from entry.metadata
        else:
            yield entry


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)
