"""Replies with tags: reasoning in `<think>`, tool calls in `<tool_call>` (Qwen, DeepSeek-R1, Hermes, SmolLM3)."""

from __future__ import annotations

import json
import re

from tailor.encode import reasoning
from tailor.encode.reasoning import CLOSE, OPEN
from tailor.encode.replies.reply import EMPTY, Reply, ToolCall, without_part_of

CALL = "<tool_call>"
_CALLS = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|\Z)", re.DOTALL)


class Tags:
    mark = OPEN

    def read(self, text: str, prompt: str, *, ended: bool, tools: bool) -> Reply:
        start = text.lstrip()
        is_open = start.startswith(OPEN)
        if not (is_open or ended) and OPEN.startswith(start):
            return EMPTY  # it may become the tag
        if not is_open and not reasoning.is_open(prompt):
            return _said(text, "", ended, tools)
        thoughts, close, answer = start.removeprefix(OPEN).partition(CLOSE)
        if not (close or ended):
            thoughts = without_part_of(thoughts, [CLOSE])
        return _said(answer, thoughts.strip(), ended, tools)


TAGS = Tags()


def _said(text: str, thoughts: str, ended: bool, tools: bool) -> Reply:
    """The reply with the text behind the reasoning. Calls that are not valid JSON stay text."""
    if not tools:
        return Reply(text.strip(), thoughts)
    if not ended:
        return Reply(without_part_of(text.partition(CALL)[0], [CALL]).strip(), thoughts)
    calls = _calls(text)
    return Reply((text.partition(CALL)[0] if calls else text).strip(), thoughts, calls)


def _calls(text: str) -> tuple[ToolCall, ...]:
    calls = []
    for match in _CALLS.finditer(text):
        try:
            call = json.loads(match[1])
            name, arguments = call["name"], call.get("arguments", {})
        except (ValueError, LookupError, TypeError, RecursionError):
            return ()
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return ()
        calls.append(ToolCall(name, json.dumps(arguments, ensure_ascii=False)))
    return tuple(calls)
