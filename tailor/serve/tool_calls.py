"""Tool calls in the text of an answer, in the form of the built-in templates with tools (Hermes, Qwen): `<tool_call>`."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

START = "<tool_call>"
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|\Z)", re.DOTALL)


def parse(text: str) -> tuple[str, list[dict[str, Any]]]:
    """(the text before the first call, the calls as in OpenAI's interface). Calls that are not valid JSON stay text."""
    calls = []
    for match in _CALL.finditer(text):
        try:
            call = json.loads(match[1])
            name, arguments = call["name"], call.get("arguments", {})
        except (ValueError, LookupError, TypeError, RecursionError):
            return text, []
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return text, []
        calls.append(
            {
                "id": f"call_{uuid.uuid4().hex[:24]}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
            }
        )
    return (text[: text.index(START)].rstrip(), calls) if calls else (text, [])


def held(text: str) -> int:
    """The number of characters from which a text is, or may become, a tool call."""
    at = text.find(START)
    if at >= 0:
        return len(text) - at
    return next(
        (size for size in range(min(len(START) - 1, len(text)), 0, -1) if text.endswith(START[:size])), 0
    )
