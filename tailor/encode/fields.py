"""Convert the fields of a row to texts, messages and tools; the formats share these functions. All raise RowError."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tailor.encode.records import Chat, RowError

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
    return [{"role": "system", "content": to_text(row["system"], "system")}] if row.get("system") else []


def to_turns(value: Any, field: str) -> list[dict[str, Any]]:
    """Convert ShareGPT turns to messages."""
    messages: list[dict[str, Any]] = []
    for entry in to_list(value, field):
        if not isinstance(entry, Mapping) or "from" not in entry or "value" not in entry:
            raise RowError("missing_key", "a turn needs the keys `from` and `value`")
        role = _SHAREGPT.get(entry["from"])
        if role is None:
            raise RowError("unknown_role", f"unknown role {entry['from']!r}; known: {', '.join(_SHAREGPT)}")
        text = to_text(entry["value"], "value")
        if role == "call":
            messages.append({"role": "assistant", "content": "", "tool_calls": to_calls(text)})
        else:
            messages.append({"role": role, "content": text})
    return messages


def to_question(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Convert the Alpaca columns before the answer to messages: system, history, and the instruction with its input."""
    messages = to_system(row)
    for pair in row.get("history") or []:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise RowError("wrong_type", "`history` must be a list of [instruction, answer] pairs")
        messages.append({"role": "user", "content": to_text(pair[0], "history")})
        messages.append({"role": "assistant", "content": to_text(pair[1], "history")})
    question = to_text(row["instruction"], "instruction")
    if row.get("input"):
        text = to_text(row["input"], "input")
        question = f"{question}\n{text}" if question else text
    return [*messages, {"role": "user", "content": question}]


def to_message(entry: Any) -> dict[str, Any]:
    """Check and normalize an OpenAI-style message."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("role"), str):
        raise RowError("missing_key", "a message needs the key `role`")
    message = {key: value for key, value in entry.items() if value is not None}
    message["role"] = role = _ROLES.get(entry["role"], entry["role"])
    if role not in ("system", "user", "assistant", "tool"):
        raise RowError("unknown_role", f"unknown role {role!r}; known: system, user, assistant, tool")
    if message.get("weight", 1) not in (0, 1):
        raise RowError("wrong_type", f"`weight` of a message must be 0 or 1, not {message['weight']!r}")
    if message.get("tool_calls"):
        message["tool_calls"] = [_call(call) for call in to_list(message["tool_calls"], "tool_calls")]
    else:
        message.pop("tool_calls", None)
    if "content" not in message and "tool_calls" not in message:
        raise RowError("missing_key", f"the {role} message needs the key `content`")
    message["content"] = to_text(message.get("content", ""), "content")
    return message


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
    return [
        dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)} for tool in tools
    ] or None


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
    if isinstance(arguments, str):
        arguments = _loads(arguments, "arguments")
    if not isinstance(arguments, Mapping):
        raise RowError(
            "bad_tool_call", f"the arguments of a tool call must be an object, not {kind_of(arguments)}"
        )
    extra = {"id": value["id"]} if value.get("id") is not None else {}
    return {**extra, "type": "function", "function": {"name": call["name"], "arguments": dict(arguments)}}


def to_text(value: Any, field: str) -> str:
    """The text of a string, or of a list of text parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return "".join(_part(part, field) for part in value)
    raise RowError("wrong_type", f"`{field}` must be a text, not {kind_of(value)}")


def _part(part: Any, field: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else kind_of(part)
    raise RowError("wrong_type", f"`{field}` has a part of type {kind!r}; only text is supported")


def to_list(value: Any, field: str) -> Sequence[Any]:
    """The value, if it is a list."""
    if isinstance(value, Sequence) and not isinstance(value, str):
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


def _loads(value: str, field: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise RowError("bad_json", f"`{field}` is not valid JSON ({error})") from None


def kind_of(value: Any) -> str:
    """The type of a value for messages, with its article."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
