"""What to write instead of a value that its key does not take."""

from __future__ import annotations

import difflib
import json
import math
from typing import Any, get_origin

from tailor.redaction import redacted
from tailor.spec.reading import schema_tree
from tailor.spec.reading.source import Document, Path, scalar


def given(path: Path, document: Document) -> str:
    """A value as the user wrote it, shortened to 60 characters."""
    value = document.get(path)
    if isinstance(value, (dict, list)):
        kind = "mapping" if isinstance(value, dict) else "list"
        return f"a {kind}" if value else f"an empty {kind}"
    if path in document.written:
        text = document.written[path] or "nothing"
    else:
        text = json.dumps(value, ensure_ascii=False)
    text = " ".join(redacted(text).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def hint_of(path: Path, value: Any, needed: schema_tree.Allowed, document: Document) -> str | None:
    """How to write the value that was probably intended."""
    if isinstance(value, str) and (hint := _text_hint(path, value, needed, document)) is not None:
        return hint
    if needed.sections and not needed.lists and isinstance(value, (str, bool, int, float)):
        return _section_hint(path, value, needed, document)
    if isinstance(value, str):
        return None
    plain = isinstance(value, (bool, int, float))
    if plain and str in needed.types and path in document.written:
        return f'put it in quotes: "{document.written[path]}"'
    if plain and any(get_origin(kind) is list for kind in needed.types):
        return f"write it as a list: [{given(path, document)}]"
    if isinstance(value, float) and not math.isfinite(value):
        return "write a finite number"
    if isinstance(value, float) and int in needed.types and value.is_integer():
        return f"write {int(value)}"
    if isinstance(value, dict) and needed.lists:
        return "put `- ` before its first key"
    return None


def _section_hint(path: Path, value: Any, needed: schema_tree.Allowed, document: Document) -> str | None:
    """How to write a section of which only one value is given: that of its one required key, or none."""
    if len(needed.types) > 1:
        return None
    section = needed.sections[0]
    start = "- " if isinstance(path[-1], int) else f"{path[-1]}: "
    first, _, rest = str(value).partition(" ")
    if first in section.model_fields and rest:
        return f"write {first}: {rest}"
    required = [key for key, info in section.model_fields.items() if info.is_required()]
    if value is True and not required:
        return f"write {start}{{}}"
    if value in section.model_fields:
        inner = schema_tree.of_field(section.model_fields[str(value)])
        return f"write {start}{{{value}: {{…}}}}" if inner.sections else None
    if len(required) == 1 and type(value) in schema_tree.of_field(section.model_fields[required[0]]).types:
        return f"write {start}{{{required[0]}: {given(path, document)}}}"
    return None


def _text_hint(path: Path, value: str, needed: schema_tree.Allowed, document: Document) -> str | None:
    for section in needed.sections:
        for key, info in section.model_fields.items():
            if value in schema_tree.of_field(info).choices:
                start = "- " if isinstance(path[-1], int) else f"{path[-1]}: "
                return f"write {start}{{{key}: {value}}}"
    item = needed.item(0)
    if item and item.sections:
        return f"write {path[-1]}: [{{path: {value}}}]" if "path" in item.sections[0].model_fields else None
    choices = [str(choice) for choice in needed.choices]
    near = difflib.get_close_matches(value.lower(), choices, n=1)
    if near:
        return f"did you mean {near[0]}?"
    if any(get_origin(kind) is list for kind in needed.types):
        return f"write it as a list: [{value}]"
    if needed.optional and value.lower() in ("off", "no", "none", "never", "false"):
        return "write null"
    if bool in needed.types and value.lower() in ("on", "yes", "off", "no", "y", "n", "true", "false"):
        return f"write {'true' if value.lower() in ('on', 'yes', 'y', 'true') else 'false'}"
    if int in needed.types or float in needed.types:
        number = scalar(value.replace("_", "").replace(",", "").strip())
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            return "remove the quotes" if path not in document.written else f"write {number}"
    return None
