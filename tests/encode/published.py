"""What published chat templates write for some conversations: the words that the built-in ones are held to.

    python -m tests.encode.published FOLDER

FOLDER holds a NAME.jinja per published template, and sources.json: NAME -> [built-in template, where NAME stands].
Writes tests/encode/fixtures/published.json. The templates themselves belong to their authors, so only what they write
is kept here, with a hash of each.
"""

from __future__ import annotations

import hashlib
import json
import sys
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


def written(template: Template, name: str) -> str | None:
    """What a template writes for a conversation; None when it refuses it."""
    chosen = CONVERSATIONS[name]
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
    kept: dict[str, Any] = {}
    for name, (builtin, source) in sorted(json.loads((folder / "sources.json").read_text()).items()):
        text = (folder / f"{name}.jinja").read_text()
        kept[name] = {
            "builtin": builtin,
            "source": source,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "written": {case: written(Template(name, text), case) for case in CONVERSATIONS},
        }
    FIXTURE.parent.mkdir(exist_ok=True)
    FIXTURE.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
