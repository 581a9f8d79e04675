"""Data formats: from a row's columns to a record. One file per format or family of formats."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from tailor.encode.formats.base import Format
from tailor.errors import ExtensionError
from tailor.registry import Registry
from tailor.spec import data
from tailor.spec.data import Kind, builtin_formats, is_read

FORMATS: Registry[Format] = data.FORMATS


def get_format(name: str) -> Format:
    """The format of a name. ExtensionError when another package registers something else under it."""
    found: Any = FORMATS.get(name)
    if not isinstance(found, Format) or found.name != name:
        what = f"the format {found.name}" if isinstance(found, Format) else f"a {type(found).__name__}"
        raise ExtensionError(
            f"{FORMATS.group}: {name} is {what}",
            hint=f"the entry point must name a tailor.encode.formats.base.Format whose name is {name}",
        )
    return found


def code_of(name: str) -> list[str] | None:
    """What tells two versions of another package's format apart: its package's version, and the text of its module.

    None for a built-in format: `ENCODE_VERSION` counts its versions.
    """
    if name in FORMATS.builtin:
        return None
    (entry, *_) = entry_points(group=FORMATS.group, name=name)
    try:
        text = inspect.getsource(import_module(entry.module))
    except (OSError, TypeError):  # a compiled module
        text = ""
    return [entry.dist.version if entry.dist is not None else "", text]


def formats_of(kinds: Sequence[Kind]) -> list[str]:
    """Names of all formats whose rows are of these kinds. Those of other packages are loaded for it."""
    registered = [name for name in FORMATS.names() if name not in FORMATS.builtin]
    return [*builtin_formats(kinds), *(name for name in registered if is_read(get_format(name).rows, kinds))]


def recognize(rows: Sequence[Any], columns: Mapping[str, str], among: Iterable[str]) -> list[str]:
    """Formats that the first rows may have. One name is an answer, several are ambiguous, none is unknown."""
    formats = [get_format(name) for name in among]
    return [
        fmt.name
        for fmt in formats
        if set(columns) <= set(fmt.fields) and any(fmt.fits(row, columns) for row in rows)
    ]
