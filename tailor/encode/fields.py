"""Convert the fields of a row to texts, messages and tools; the formats share these functions. All raise RowError."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tailor.encode.content import (
    REASONING_KEYS,
    Content,
    is_empty,
    kind_of,
    part_text,
    read_content,
    refuse_media,
    refuse_placeholder,
)
from tailor.encode.records import Chat, RowError
from tailor.encode.turn_marks import mark

_ROLES = {"developer": "system", "function": "tool"}
_SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "call",
    "observation": "tool",
    "tool": "tool",
}


def to_system(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The system message of a row as a list, empty without one."""
    system = row.get("system")
    return [] if is_empty(system) else [{"role": "system", "content": to_text(system, "system")}]


def with_system(row: Mapping[str, Any], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation behind the row's system turn, unless it begins with the same one. RowError for another one."""
    system = to_system(row)
    if not system or not messages or messages[0]["role"] != "system":
        return system + messages
    if messages[0]["content"] != system[0]["content"]:
        raise RowError("two_systems", "`system` and the system message of the conversation differ")
    return messages


def to_turns(value: Any, field: str) -> list[dict[str, Any]]:
    """Convert ShareGPT turns to messages."""
    messages: list[dict[str, Any]] = []
    for entry in to_entries(value, field):
        if not isinstance(entry, Mapping) or "from" not in entry or "value" not in entry:
            raise RowError("missing_key", "a turn needs the keys `from` and `value`")
        refuse_media(entry, "a turn")
        role = _SHAREGPT.get(entry["from"]) if isinstance(entry["from"], str) else None
        if role is None:
            raise RowError("unknown_role", f"unknown role {entry['from']!r}; known: {', '.join(_SHAREGPT)}")
        if role == "call":
            calls = to_calls(to_text(entry["value"], "value"))
            message = {"role": "assistant", "content": "", "tool_calls": calls}
        else:
            message = {"role": role, "content": entry["value"]}
            _read_content(message, "value")
        if role in ("assistant", "call"):
            message |= to_reasoning(entry)
        messages.append(mark(message, entry))
    return messages


def to_question(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Convert the Alpaca columns before the answer to messages: system, history, and the instruction with its input."""
    messages = to_system(row)
    for pair in to_entries(row.get("history", []), "history"):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise RowError("wrong_type", "`history` must be a list of [instruction, answer] pairs")
        messages.append({"role": "user", "content": to_text(pair[0], "history")})
        messages.append({"role": "assistant", "content": to_text(pair[1], "history")})
    question = to_text(row["instruction"], "instruction")
    refuse_placeholder(question)
    if not is_empty(row.get("input")):
        text = to_text(row["input"], "input")
        question = f"{question}\n{text}" if question else text
    return [*messages, {"role": "user", "content": question}]


def to_message(entry: Any) -> dict[str, Any]:
    """Check and normalize an OpenAI-style message."""
    if not isinstance(entry, Mapping) or entry.get("role") is None:
        raise RowError("missing_key", "a message needs the key `role`")
    if not isinstance(entry["role"], str):
        raise RowError("wrong_type", f"the `role` of a message must be a text, not {kind_of(entry['role'])}")
    message = {key: value for key, value in entry.items() if value is not None}
    message["role"] = role = _ROLES.get(entry["role"], entry["role"])
    if role not in ("system", "user", "assistant", "tool"):
        raise RowError("unknown_role", f"unknown role {role!r}; known: system, user, assistant, tool")
    refuse_media(message, f"the {role} message")
    if message.get("tool_calls"):
        calls = message["tool_calls"]
        calls = _loads(calls, "tool_calls") if isinstance(calls, str) else calls
        message["tool_calls"] = [_call(call) for call in to_list(calls, "tool_calls")]
    else:
        message.pop("tool_calls", None)
    if legacy := message.pop("function_call", None):
        _legacy_call(message, legacy)
    if role == "assistant":
        message |= to_reasoning(message)
        if "reasoning_content" in message:
            message = {key: value for key, value in message.items() if key not in REASONING_KEYS[1:]}
    if not ("content" in message or "tool_calls" in message or "reasoning_content" in message):
        raise RowError("missing_key", f"the {role} message needs the key `content`")
    message.setdefault("content", "")
    _read_content(message, "content")
    return mark(message, message)


def _read_content(message: dict[str, Any], field: str) -> None:
    """Replace a message's content by its text, with the reasoning and the tool calls that its parts hold."""
    if isinstance(message["content"], str):
        if message["role"] == "user":
            refuse_placeholder(message["content"])
        return
    content: Content = read_content(message["content"], field)
    message["content"] = content.text
    if message["role"] == "user":
        refuse_placeholder(content.text)
    elif message["role"] == "assistant":
        if content.reasoning:
            message["reasoning_content"] = content.reasoning
        if content.calls:
            calls = [_loads(call, "tool_call") if isinstance(call, str) else call for call in content.calls]
            message["tool_calls"] = [*message.get("tool_calls", []), *map(_call, calls)]
        return
    if content.reasoning or content.calls:
        raise RowError("wrong_type", f"only an assistant's `{field}` may have reasoning and tool calls")


def to_reasoning(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An assistant's reasoning under its usual key, from whichever key has it."""
    if not any(key in entry for key in REASONING_KEYS):
        return {}
    texts = {to_text(entry[key], key) for key in REASONING_KEYS if entry.get(key)}
    if len(texts) > 1:
        raise RowError("two_reasonings", f"a message has several reasonings, in {', '.join(REASONING_KEYS)}")
    return {"reasoning_content": texts.pop() if texts else ""}


def _legacy_call(message: dict[str, Any], value: Any) -> None:
    """A `function_call` of OpenAI's older form as a tool call."""
    call = _call(_loads(value, "function_call") if isinstance(value, str) else value)
    if "tool_calls" in message and [one["function"] for one in message["tool_calls"]] != [call["function"]]:
        raise RowError("bad_tool_call", "a message has `tool_calls` and another `function_call`")
    message.setdefault("tool_calls", [call])


def to_entries(value: Any, field: str) -> Sequence[Any]:
    """The turns of a conversation: a list, or its JSON text."""
    return to_list(_loads(value, field) if _is_json_list(value) else value, field)


def _is_json_list(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip()[:1] == "["


def to_chat(messages: list[dict[str, Any]], tools: Any) -> Chat:
    """A conversation. RowError when it is empty or has no user turn."""
    if not messages:
        raise RowError("empty", "the conversation is empty")
    if not any(message["role"] == "user" for message in messages):
        raise RowError("no_user", "the conversation has no user turn")
    return Chat(messages, to_tools(tools))


def to_tools(value: Any) -> list[dict[str, Any]] | None:
    """Convert tools, a list or its JSON text, to `[{"type": "function", "function": …}]`. Each may be a bare function."""
    if not value:
        return None
    tools = to_list(_loads(value, "tools") if isinstance(value, str) else value, "tools")
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("bad_tools", "each entry of `tools` must be an object")
    tools = [without_nulls(tool) for tool in tools]
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools] or None


def without_nulls(value: Any) -> Any:
    """The value without the keys whose value is null, at any depth: writers that unify structs put them there."""
    if isinstance(value, Mapping):
        return {key: without_nulls(child) for key, child in value.items() if child is not None}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [without_nulls(child) for child in value]
    return value


def to_calls(value: str) -> list[dict[str, Any]]:
    """Parse the tool calls of a ShareGPT `function_call` turn."""
    loaded = _loads(value, "function_call")
    return [_call(call) for call in (loaded if isinstance(loaded, list) else [loaded])]


def _call(value: Any) -> dict[str, Any]:
    """A tool call with its arguments as an object, as chat templates expect."""
    call = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        raise RowError("bad_tool_call", "a tool call needs the key `name`")
    arguments = call.get("arguments") or {}
    # A JSON text has the nulls that its author wrote.
    arguments = _loads(arguments, "arguments") if isinstance(arguments, str) else without_nulls(arguments)
    if not isinstance(arguments, Mapping):
        raise RowError(
            "bad_tool_call", f"the arguments of a tool call must be an object, not {kind_of(arguments)}"
        )
    extra = {"id": value["id"]} if value.get("id") is not None else {}
    return {**extra, "type": "function", "function": {"name": call["name"], "arguments": dict(arguments)}}


def to_text(value: Any, field: str) -> str:
    """The text of a string, or of a list of text parts. RowError for a list of strings: several answers are not one."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        if value and are_texts(value):
            raise RowError("wrong_type", f"`{field}` must be a text, not a list of {len(value)} texts")
        return "".join(part_text(part, field) for part in value)
    raise RowError("wrong_type", f"`{field}` must be a text, not {kind_of(value)}")


def to_list(value: Any, field: str) -> Sequence[Any]:
    """The value, if it is a list."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return value
    raise RowError("wrong_type", f"`{field}` must be a list, not {kind_of(value)}")


def are_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return is_list and all(isinstance(text, str) for text in value)


def first_keys(value: Any) -> set[str]:
    """The keys of an object, or of the first object of a list."""
    if isinstance(value, Mapping):
        return set(value)
    if isinstance(value, Sequence) and not isinstance(value, str) and value and isinstance(value[0], Mapping):
        return set(value[0])
    return set()


def first_turn_keys(value: Any) -> set[str]:
    """As `first_keys`, also of a conversation that is a JSON text."""
    if not _is_json_list(value):
        return first_keys(value)
    try:
        return first_keys(json.loads(value))
    except (ValueError, RecursionError):
        return set()


def _loads(value: str, field: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise RowError("bad_json", f"`{field}` is not valid JSON ({error})") from None
