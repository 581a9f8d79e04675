"""Replies with tags: reasoning in `<think>`, tool calls in `<tool_call>` (Qwen, DeepSeek-R1, Hermes, SmolLM3)."""

from __future__ import annotations

import json
import re
from typing import Any

from tailor.encode import reasoning
from tailor.encode.reasoning import CLOSE, OPEN
from tailor.encode.replies.reply import EMPTY, Reply, ToolCall, json_object_at, without_part_of

CALL = "<tool_call>"
_START, _END = re.compile(rf"{CALL}\s*(?=\{{|\Z)"), re.compile(r"\s*(?:</tool_call>|\Z)")


class Tags:
    mark = ""

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
    """The reply with the text behind the reasoning, up to the first call. If a call is not valid JSON, all calls stay text."""
    if not tools:
        return Reply(text.strip(), thoughts)
    if not ended:
        return Reply(without_part_of(text.partition(CALL)[0], [CALL]).strip(), thoughts)
    start, calls = _calls(text)
    return Reply(text[:start].strip(), thoughts, calls)


def _calls(text: str) -> tuple[int, tuple[ToolCall, ...]]:
    """(position of the first call, the calls). (length of the text, no calls) without one, or when one is not valid."""
    found = _START.search(text)
    start, calls = found.start() if found else len(text), []
    while found:
        value, at = json_object_at(text, found.end())
        end, call = _END.match(text, at), _call(value)
        if end is None or call is None:
            return len(text), ()
        calls.append(call)
        found = _START.search(text, end.end())
    return start, tuple(calls)


def _call(value: dict[str, Any]) -> ToolCall | None:
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters", {}))
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))
