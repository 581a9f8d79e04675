"""The reference of recipes or other files, written from the specs and their docstrings."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tailor.spec.base import File, Section
from tailor.spec.reading import schema_tree
from tailor.spec.recipe import Recipe

RECIPES = """\
# Recipe reference

Written by `make docs` from the specs in `tailor/spec`; a test keeps the two equal.

A recipe is one YAML file with the sections below. Scalars follow YAML 1.2: `2e-4` is a number, `on` is text.
A key that is not listed here is an error. A section whose keys all have defaults may be left out.

- `extends: base.yaml` takes the keys of another recipe (its path is seen from this file) and changes them: mappings
  merge key by key, lists and values replace. One level deep.
- `tailor run recipe.yaml optim.learning_rate=1e-4 data.train.0.limit=100` sets keys from the command line.
- Local paths are seen from the folder in which `tailor` runs.
- Secrets stand in the environment (`HF_TOKEN`, `AWS_ACCESS_KEY_ID` …), never in a recipe.
"""


def reference(root: type[File] = Recipe, head: str = RECIPES) -> str:
    """The reference as Markdown, below its head."""
    parts = [head]
    if any(not _below(info) for info in root.model_fields.values()):
        parts.extend(_table(root))
    told: set[type[Section]] = set()
    for key, info in root.model_fields.items():
        parts.extend(line for path, inner in _below(info, key) for line in _section(inner, path, told))
    return "\n".join(parts)


def _section(section: type[Section], path: str, told: set[type[Section]]) -> Iterator[str]:
    """The section's keys, then the sections below it; one that stands in several places is told once."""
    if section in told:
        return
    told.add(section)
    names = schema_tree.names(section)
    title = f"`{path}` with `name: {names[0]}`" if names else f"`{path}`"
    level = "##" if "." not in path else "###"
    yield f"{level} {title}\n"
    yield f"{inspect.cleandoc(section.__doc__ or '')}\n"
    yield from _table(section)
    for key, info in section.model_fields.items():
        for below, inner in _below(info, f"{path}.{key}"):
            yield from _section(inner, below, told)


def _below(info: FieldInfo, path: str = "") -> list[tuple[str, type[Section]]]:
    """The sections that a key holds, with their paths."""
    value = schema_tree.of_field(info)
    item = value.item(0)
    return [
        *((path, section) for section in value.sections),
        *((f"{path}[]", section) for section in (item.sections if item else ())),
    ]


def _table(section: type[Section]) -> Iterator[str]:
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for key, info in section.model_fields.items():
        meaning = " ".join((info.description or "").split())
        yield f"| `{key}` | {_escape(_value(info))} | {_default(info)} | {_escape(meaning)} |"
    yield ""


def _value(info: FieldInfo) -> str:
    value = schema_tree.of_field(info)
    item = value.item(0)
    if value.sections:
        return f"{', '.join(map(str, value.choices))}, or a section" if value.choices else "a section"
    if item and item.sections:
        several = len(item.sections) > 1
        return f"a list of {'sections with a name' if several else item.sections[0].__name__.lower() + 's'}"
    nullable = value.optional and info.default is not None
    return schema_tree.describe(value) + (" or null" if nullable else "")


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "**required**"
    default: Any = info.default
    if isinstance(default, list) and default and isinstance(default[0], BaseModel):
        return f"`{json.dumps([one.model_dump(exclude_defaults=True) for one in default])}`"
    if isinstance(default, BaseModel):
        return "its defaults"
    if default is None:
        return "—"
    return f"`{json.dumps(default)}`" if not isinstance(default, str) else f"`{default}`"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
