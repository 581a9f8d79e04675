"""What Ollama makes of a conversation with a Go template (its template/template.go and api/types.go)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tailor.encode.template import Message
from tailor.errors import TemplateError
from tailor.export.gotemplate.functions import Struct, to_json
from tailor.export.gotemplate.parse import Node, parse
from tailor.export.gotemplate.run import execute


class OllamaTemplate:
    """A Go template as Ollama reads it. TemplateError for one that it, or this reader of it, rejects."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._nodes: tuple[Node, ...] = parse(text)
        if ".Messages" not in text:
            # Ollama calls such templates legacy, and renders them turn by turn.
            raise TemplateError("the Go template does not read .Messages")

    @property
    def has_tools(self) -> bool:
        """Whether it reads tools: Ollama refuses requests with tools otherwise."""
        return ".Tools" in self.text

    @property
    def has_date(self) -> bool:
        """Whether it writes the date of the request."""
        return "currentDate" in self.text or "yesterdayDate" in self.text

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The prompt, before the tokenizer adds the BOS."""
        system = [message["content"] for message in messages if message["role"] == "system"]
        data = {
            "System": "\n\n".join(system),
            "Messages": [_message(message) for message in _collated(messages)],
            "Tools": [_tool(tool) for tool in tools],
            "Response": "",
            "Think": False,
            "ThinkLevel": "",
            "IsThinkSet": False,
        }
        return execute(self._nodes, data)


def _collated(messages: Sequence[Message]) -> list[Message]:
    """The messages, with those of one role in a row joined, except tool results."""
    found: list[Message] = []
    for message in messages:
        if found and found[-1]["role"] == message["role"] != "tool":
            found[-1] = {**found[-1], "content": found[-1]["content"] + "\n\n" + message["content"]}
        else:
            found.append(message)
    return found


def _message(message: Message) -> Struct:
    calls = [_call(call, number) for number, call in enumerate(message.get("tool_calls") or ())]
    return Struct(
        {
            "Role": message["role"],
            "Content": message["content"],
            "Thinking": message.get("reasoning_content") or "",
            "Images": [],
            "ToolCalls": calls,
            "ToolName": message.get("name") or "",
            "ToolCallID": message.get("tool_call_id") or "",
        }
    )


def _call(call: Mapping[str, Any], number: int) -> Struct:
    function = call["function"]
    arguments = Struct(dict(function["arguments"]), to_json(dict(function["arguments"])))
    return Struct(
        {"ID": "", "Function": Struct({"Index": number, "Name": function["name"], "Arguments": arguments})}
    )


def _tool(tool: Mapping[str, Any]) -> Struct:
    function = tool["function"]
    given = function["parameters"]
    parameters = {"type": given["type"], "required": given["required"], "properties": given["properties"]}
    ordered = {"name": function["name"], "description": function["description"], "parameters": parameters}
    inner = Struct(
        {
            "Name": function["name"],
            "Description": function["description"],
            "Parameters": Struct(
                {
                    "Type": given["type"],
                    "Required": given["required"],
                    "Properties": given["properties"],
                },
                _ordered_json(parameters),
            ),
        },
        _ordered_json(ordered),
    )
    whole = {"type": tool["type"], "function": ordered}
    return Struct({"Type": tool["type"], "Function": inner}, _ordered_json(whole))


def _ordered_json(value: Mapping[str, Any]) -> str:
    """JSON of a Go struct, whose fields keep their order."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
