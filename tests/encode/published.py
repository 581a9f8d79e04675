"""What published chat templates write for some conversations: the words that the built-in ones are held to.

    python -m tests.encode.published FOLDER

FOLDER holds a NAME.jinja per published template, and sources.json: NAME -> [built-in template, where NAME stands].
Writes them into tests/encode/fixtures/published.json. The templates themselves belong to their authors, so only what they write
is kept here, with a hash of each.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2

from tailor.encode.template import Template, render

FIXTURE = Path(__file__).parent / "fixtures" / "published.json"
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}

_CALL = {"name": "weather", "arguments": {"city": "Paris"}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
TURNS = [
    {"role": "user", "content": "Hello, what is the weather?"},
    {"role": "assistant", "content": "It is sunny.\n\nReally; naïve 日本 🙂"},
    {"role": "user", "content": "And tomorrow?"},
    {"role": "assistant", "content": "Rain, 22 degrees."},
]
SYSTEM = {"role": "system", "content": "Be brief."}
CALLING = [
    {"role": "user", "content": "What is the weather in Paris?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "id": "call00001", "function": _CALL}],
    },
    {"role": "tool", "content": '{"degrees": 22}', "tool_call_id": "call00001"},
    {"role": "assistant", "content": "It is 22 degrees."},
]
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "turns": {"messages": TURNS},
    "prompt": {"messages": TURNS[:3], "add_generation_prompt": True},
    "system, prompt": {"messages": [SYSTEM, TURNS[0]], "add_generation_prompt": True},
    "system, one exchange": {"messages": [SYSTEM, *TURNS[:2]]},
    "system": {"messages": [SYSTEM, *TURNS]},
    "spaces": {
        "messages": [
            {"role": "system", "content": " Be brief.\n"},
            {"role": "user", "content": " Hello? "},
            {"role": "assistant", "content": " Yes. "},
        ]
    },
    "reasoning": {
        "messages": [
            TURNS[0],
            {"role": "assistant", "content": "<think>\nIt is June.\n</think>\n\nIt is sunny."},
            TURNS[2],
            {"role": "assistant", "content": "<think>\nClouds.\n</think>\n\nRain."},
        ]
    },
    "tools": {"messages": CALLING, "tools": TOOLS},
    "system and tools": {"messages": [SYSTEM, *CALLING, *TURNS[2:]], "tools": TOOLS},
}

_EXACT = {"type": "object", "properties": {"at": {"type": "number"}}}
_CONVERT = {
    "type": "object",
    "required": ["unit", "values"],
    "properties": {
        "unit": {"type": "string", "enum": ["C", "F"], "default": "C", "description": "Of the result."},
        "values": {"type": "array", "items": {"type": "integer"}},
        "exact": {"type": "boolean", "default": False},
        "note": {"type": "string", "nullable": True},
    },
}
_FUNCTIONS = [
    {"type": "function", "function": {"name": name, "description": f"To {name}.", "parameters": parameters}}
    for name, parameters in (("convert", _CONVERT), ("at", _EXACT), ("now", {}))
]
_ASKED = {
    "role": "assistant",
    "content": "",
    "thinking": "I should ask.",
    "tool_calls": CALLING[1]["tool_calls"],
}
_ANSWERED = [
    {**TURNS[1], "thinking": "It is June."},
    {**TURNS[3], "thinking": "Clouds."},
]
THINKING: dict[str, dict[str, Any]] = {
    "thinking": {"messages": [SYSTEM, TURNS[0], _ANSWERED[0], TURNS[2], _ANSWERED[1]]},
    "thinking, prompt": {"messages": [TURNS[0], _ANSWERED[0], TURNS[2]], "add_generation_prompt": True},
    "thinking before a call": {"messages": [CALLING[0], _ASKED], "tools": TOOLS},
    "thinking before a call, prompt": {
        "messages": [CALLING[0], _ASKED, CALLING[2]],
        "tools": TOOLS,
        "add_generation_prompt": True,
    },
    "several tools": {"messages": TURNS, "tools": _FUNCTIONS},
}
"""For templates that read the key `thinking`."""


def written(template: Template, name: str) -> str | None:
    """What a template writes for a conversation; None when it refuses it."""
    template = replace(template, date="2025-08-05")
    chosen = {**CONVERSATIONS, **THINKING}[name]
    try:
        return render(
            template,
            chosen["messages"],
            chosen.get("tools"),
            SPECIALS,
            add_generation_prompt=chosen.get("add_generation_prompt", False),
        )
    except (jinja2.TemplateError, TypeError):
        return None


def main(folder: Path) -> None:
    kept: dict[str, Any] = json.loads(FIXTURE.read_text())
    for name, (builtin, source) in sorted(json.loads((folder / "sources.json").read_text()).items()):
        text = (folder / f"{name}.jinja").read_text()
        kept[name] = {
            "builtin": builtin,
            "source": source,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "written": {
                case: written(Template(name, text), case)
                for case in (*CONVERSATIONS, *(THINKING if "thinking" in text else ()))
            },
        }
    FIXTURE.write_text(json.dumps(dict(sorted(kept.items())), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
