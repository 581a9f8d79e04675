"""What a chat template cannot write, found by rendering small conversations; and conversations as it can write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import jinja2

from tailor.encode.records import Chat, RowError
from tailor.encode.template import Message, render
from tailor.encode.tokenizer import Tokenizer

QUESTION = {"role": "user", "content": "What is two and two?"}
ANSWER = {"role": "assistant", "content": "Four it is."}
TOOLS, CALLS = "the tools", "tool calls"
LATER, BESIDE = "later system messages", "text beside tool calls"
_TOOL = {"type": "function", "function": {"name": "probe_tool", "description": "A tool.", "parameters": {}}}
_CALL, _OTHER = (
    {"type": "function", "function": {"name": name, "arguments": {"at": 1}}}
    for name in ("probe_call", "probe_other")
)
_SYSTEM, _RESULT = "Probe the system.", "Probe result."


@dataclass(frozen=True)
class TemplateLimits:
    """left_out: the parts of a conversation that the template silently drops, named as by `contents`. one_call: it writes one tool
    call per turn."""

    left_out: tuple[str, ...]
    one_call: bool

    def dropped(self, chat: Chat) -> str | None:
        """The first part of a conversation that is dropped; None if there is none."""
        return next((what for what in self.left_out if what in contents(chat)), None)

    def fitting(self, chat: Chat) -> Chat:
        """The conversation with one call per turn, if the template writes no more. RowError for a call without its result."""
        several = any(len(message.get("tool_calls", ())) > 1 for message in chat.messages)
        return Chat(_one_call_each(chat.messages), chat.tools) if self.one_call and several else chat


def limits_of(tokenizer: Tokenizer) -> tuple[TemplateLimits, TemplateLimits]:
    """The limits of the tokenizer's template, for conversations (without, with) tools."""
    without, with_tools = (
        TemplateLimits(_left_out(tokenizer, tools), _writes_one_call(tokenizer, tools))
        for tools in (None, [_TOOL])
    )
    return without, with_tools


def contents(chat: Chat) -> set[str]:
    """The parts of a conversation that a template may drop."""
    named = {f"{message['role']} messages" for message in chat.messages}
    calling = [message for message in chat.messages if message.get("tool_calls")]
    present = {
        TOOLS: chat.tools,
        CALLS: calling,
        LATER: any(message["role"] == "system" for message in chat.messages[1:]),
        BESIDE: any(message["content"].strip() for message in calling),
    }
    return named | {what for what, found in present.items() if found}


def end_of_call(tokenizer: Tokenizer) -> tuple[int, str, str] | None:
    """The last token of a turn with a tool call, its text, and the text behind the call. None if it is no special token."""
    _, name, tail = (_rendered(tokenizer, [QUESTION, _calling()], [_TOOL]) or "").rpartition("probe_call")
    if not name:
        return None
    last = tokenizer.encode(tail.rstrip())[-1]
    added = tokenizer.added.get(last)
    return (last, added.content, tail) if added is not None and added.special else None


def _left_out(tokenizer: Tokenizer, tools: list[Any] | None) -> tuple[str, ...]:
    """What the template silently drops. What it rejects with an error is not listed: it fails again for each row."""
    called = [QUESTION, _calling()]
    system = {"role": "system", "content": _SYSTEM}
    probes = [
        ("system messages", _SYSTEM, [system, QUESTION, ANSWER]),
        (LATER, _SYSTEM, [QUESTION, ANSWER, system, QUESTION, ANSWER]),
        (TOOLS, "probe_tool", [QUESTION, ANSWER]),
        (CALLS, "probe_call", called),
        (BESIDE, "Probe beside.", [QUESTION, {**_calling(), "content": "Probe beside."}]),
        ("tool messages", _RESULT, [*called, {"role": "tool", "content": _RESULT}, ANSWER]),
    ]
    texts = {what: _rendered(tokenizer, talk, tools) for what, _, talk in probes if tools or what != TOOLS}
    marks = {what: mark for what, mark, _ in probes}
    return tuple(what for what, text in texts.items() if text is not None and marks[what] not in text)


def _writes_one_call(tokenizer: Tokenizer, tools: list[Any] | None) -> bool:
    """Whether a second call in a turn is refused (Llama 3.1), dropped, or written behind the end of the turn (gpt-oss)."""
    one = _rendered(tokenizer, [QUESTION, _calling()], tools)
    if one is None or "probe_call" not in one:
        return False
    both = _rendered(tokenizer, [QUESTION, _calling(_OTHER)], tools)
    if both is None or "probe_other" not in both:
        return True
    end, between = end_of_call(tokenizer), both.partition("probe_call")[2].partition("probe_other")[0]
    return end is not None and end[1] in between


def _calling(*more: dict[str, Any]) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": [_CALL, *more]}


def _rendered(tokenizer: Tokenizer, messages: Sequence[Any], tools: list[Any] | None) -> str | None:
    """The text of a conversation. None if the template rejects it."""
    try:
        return render(tokenizer.require_template(), messages, tools, tokenizer.specials, probe=True)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError):
        return None


def _one_call_each(messages: Sequence[Message]) -> list[Message]:
    found: list[Message] = []
    at = 0
    while at < len(messages):
        message, calls = messages[at], messages[at].get("tool_calls", [])
        at += 1
        if len(calls) < 2:
            found.append(message)
            continue
        results = list(takewhile(lambda one: one["role"] == "tool", messages[at:]))
        ordered = _in_order(calls, results)
        if ordered is None:
            raise RowError(
                "template",
                f"message {at} has {len(calls)} tool calls, and the chat template writes one per turn, before its result: "
                f"the {len(results)} tool messages that follow are not one result of each",
            )
        rest = {key: value for key, value in message.items() if key in ("role", "weight")}
        heads = [message, *({**rest, "content": ""} for _ in calls[1:])]
        for head, call, result in zip(heads, calls, ordered, strict=True):
            found += [{**head, "tool_calls": [call]}, result]
        at += len(results)
    return found


def _in_order(calls: Sequence[Any], results: Sequence[Message]) -> list[Message] | None:
    """The result of each call: by its id, or by its position if the results have no ids. None if they are not one for each."""
    if len(calls) != len(results):
        return None
    by_id = {result["tool_call_id"]: result for result in results if result.get("tool_call_id") is not None}
    if not by_id:
        return list(results)
    ids = [call.get("id") for call in calls]
    return [by_id[one] for one in ids] if set(ids) == set(by_id) and len(by_id) == len(calls) else None
