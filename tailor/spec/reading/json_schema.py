"""The JSON Schema of a recipe or another file, for editors."""

from __future__ import annotations

import json
from typing import Any

from tailor.spec.base import File
from tailor.spec.reading import schema_tree
from tailor.spec.reading.overrides import EXTENDS
from tailor.spec.recipe import Recipe


def schema(root: type[File] = Recipe) -> dict[str, Any]:
    """The JSON Schema. Keys are required only in files without `extends`, because the base may have them.

    Keys that list items require are always required: a list replaces the base's list as a whole.
    """
    found = root.model_json_schema()
    items = {section.__name__ for section in schema_tree.list_items(root)}
    required = found.pop("required", [])
    for name, definition in found.get("$defs", {}).items():
        keys = definition.get("required")
        if keys and name not in items:
            del definition["required"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"tailor {root.noun}",
        **{key: value for key, value in found.items() if key not in ("title", "properties")},
        "properties": {
            EXTENDS: {
                "type": "string",
                "description": f"A {root.noun} from which this one takes its keys. The path is relative to this file.",
            },
            **found["properties"],
        },
        **({"anyOf": [{"required": [EXTENDS]}, {"required": required}]} if required else {}),
    }


def schema_text(root: type[File] = Recipe) -> str:
    return json.dumps(schema(root), indent=2, ensure_ascii=False) + "\n"
