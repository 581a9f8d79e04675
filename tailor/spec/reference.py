"""The recipe reference, written from the specs and their docstrings."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tailor.spec import tree
from tailor.spec.base import Section
from tailor.spec.recipe import Recipe

_HEAD = """\
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


def reference() -> str:
    """The reference as Markdown."""
    parts = [_HEAD]
    for key, info in Recipe.model_fields.items():
        for section in tree.of_field(info).sections:
            parts.extend(_section(section, key))
    return "\n".join(parts)


def _section(section: type[Section], path: str) -> Iterator[str]:
    names = tree.names(section)
    title = f"`{path}` with `name: {names[0]}`" if names else f"`{path}`"
    level = "##" if "." not in path else "###"
    yield f"{level} {title}\n"
    yield f"{inspect.cleandoc(section.__doc__ or '')}\n"
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for key, info in section.model_fields.items():
        meaning = " ".join((info.description or "").split())
        yield f"| `{key}` | {_escape(_value(info))} | {_default(info)} | {_escape(meaning)} |"
    yield ""
    for key, info in section.model_fields.items():
        value = tree.of_field(info)
        for inner in value.sections:
            yield from _section(inner, f"{path}.{key}")
        item = value.item(0)
        if item and item.sections and key == "train":  # `evaluation` has the same kind of items
            yield from _section(item.sections[0], f"{path}.{key}[]")


def _value(info: FieldInfo) -> str:
    value = tree.of_field(info)
    item = value.item(0)
    if value.sections:
        return f"{', '.join(map(str, value.choices))}, or a section" if value.choices else "a section"
    if item and item.sections:
        return "a list of sources"
    nullable = value.optional and info.default is not None
    return tree.describe(value) + (" or null" if nullable else "")


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "**required**"
    default: Any = info.default
    if isinstance(default, BaseModel):
        return "its defaults"
    if default is None:
        return "—"
    return f"`{json.dumps(default)}`" if not isinstance(default, str) else f"`{default}`"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
