"""Data formats: each converts the columns of a row to a record. One file per format or family of formats."""

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
    """The format with this name. ExtensionError when the entry point of another package is not a format of this name."""
    found: Any = FORMATS.get(name)
    if not isinstance(found, Format) or found.name != name:
        what = f"the format {found.name}" if isinstance(found, Format) else f"a {type(found).__name__}"
        raise ExtensionError(
            f"{FORMATS.group}: {name} is {what}",
            hint=f"the entry point must name a tailor.encode.formats.base.Format whose name is {name}",
        )
    return found


def code_of(name: str) -> list[str] | None:
    """The version of another package's format, for fingerprints: its package's version and the source of its module.

    None for a built-in format, whose version is `ENCODE_VERSION`.
    """
    if name in FORMATS.builtin:
        return None
    (entry, *_) = entry_points(group=FORMATS.group, name=name)
    try:
        text = inspect.getsource(import_module(entry.module))
    except (OSError, TypeError):  # a compiled module has no source
        text = ""
    return [entry.dist.version if entry.dist is not None else "", text]


def formats_of(kinds: Sequence[Kind]) -> list[str]:
    """Names of all formats with rows of these kinds. Loads the formats of other packages."""
    registered = [name for name in FORMATS.names() if name not in FORMATS.builtin]
    return [*builtin_formats(kinds), *(name for name in registered if is_read(get_format(name).rows, kinds))]


def recognize(rows: Sequence[Any], columns: Mapping[str, str], among: Iterable[str]) -> list[str]:
    """Names of the formats that at least one of the first rows fits. Several names: ambiguous; none: unknown format.

    Formats that another one of them includes are left out.
    """
    formats = [get_format(name) for name in among]
    fitting = [
        fmt
        for fmt in formats
        if set(columns) <= set(fmt.fields) and any(fmt.fits(row, columns) for row in rows)
    ]
    included = {name for fmt in fitting for name in fmt.includes}
    return [fmt.name for fmt in fitting if fmt.name not in included]
