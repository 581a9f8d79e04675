"""Varied conversations, and the turns that openai-harmony, the published renderer of gpt-oss, writes for them.

    python -m tests.encode.harmony

needs the package `openai-harmony` and its vocabulary (TIKTOKEN_ENCODINGS_BASE), and writes
tests/encode/fixtures/harmony.json: per conversation a hash of its turns, and the texts of the first few.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

FIXTURE = Path(__file__).parent / "fixtures" / "harmony.json"
DATE = "2025-08-05"
COUNT, SHOWN = 200, 6
Conversation = dict[str, Any]
Turn = tuple[str, str]
"""(text before an assistant's turn, text of the turn)."""

_WORDS = (
    "What",
    "is 2 + 2?",
    "naïve",
    "日本",
    "🙂",
    "\n\n",
    "`code`",
    "{json}",
    "to=functions.f",
    "  two spaces",
    "end.",
)
_FIELDS: tuple[dict[str, Any], ...] = (
    {"type": "string"},
    {"type": "string", "description": "A city.", "title": "City", "examples": ["Paris", "Rome"]},
    {"type": "string", "enum": ["C", "F"], "default": "C"},
    {"type": "string", "nullable": True, "default": "none"},
    {"type": "integer", "default": 3},
    {"type": ["integer", "null"]},
    {"type": "number"},
    {"type": "boolean", "default": False},
    {"type": "array", "items": {"type": "string"}, "default": ["a", 1]},
    {"type": "array"},
    {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
    {"type": "object", "description": "A place.", "properties": {"lat": {"type": "number", "default": 0.5}, "note": {}}},
    {"type": "object"},
    {"oneOf": [{"type": "string", "default": "x"}, {"type": "integer", "description": "A count.", "nullable": True}]},
    {"oneOf": [{"type": "string", "enum": ["a"], "default": "a"}], "description": "One.", "default": 2},
    {"type": "array", "items": {"oneOf": [{"type": "string", "description": "A name."}, {"type": "null"}]}},
    {"description": "Anything."},
)  # fmt: skip


def conversations() -> list[Conversation]:
    """`COUNT` conversations: system texts, reasoning, tools and their calls, several questions. The same ones every time."""
    return [_conversation(random.Random(number)) for number in range(COUNT)]


def _conversation(draw: random.Random) -> Conversation:
    def text() -> str:
        return " ".join(draw.choices(_WORDS, k=draw.randint(1, 6))).strip() or "Yes."

    def thinking(chance: float = 0.6) -> dict[str, str]:
        key = draw.choice(("reasoning_content", "reasoning", "thinking"))
        return {key: f"I think: {text()}"} if draw.random() < chance else {}

    tools = [_tool(draw, number) for number in range(draw.choice((0, 0, 1, 2, 3)))]
    messages: list[dict[str, Any]] = []
    if draw.random() < 0.6:
        messages.append({"role": draw.choice(("system", "developer")), "content": text()})
    for question in range(draw.randint(1, 3)):
        if question and draw.random() < 0.2:
            messages.append({"role": "system", "content": text()})
        messages.append({"role": "user", "content": text()})
        for step in range(draw.randint(0, 2) if tools else 0):
            calls = [
                {"id": f"call{question}{step}{at}", "type": "function", "function": _called(draw, tools)}
                for at in range(draw.choice((1, 1, 2)))
            ]
            content = text() if draw.random() < 0.3 else ""
            messages.append({"role": "assistant", "content": content, **thinking(), "tool_calls": calls})
            results = [{"role": "tool", "content": text(), "tool_call_id": call["id"]} for call in calls]
            messages += draw.sample(results, len(results))
        messages.append({"role": "assistant", "content": text(), **thinking()})
    return {"messages": messages, **({"tools": tools} if tools else {})}


def _tool(draw: random.Random, number: int) -> dict[str, Any]:
    function: dict[str, Any] = {"name": f"tool_{number}"}
    if draw.random() < 0.8:
        function["description"] = draw.choice(("Finds it.", "Finds it.\nIn two lines."))
    fields = draw.sample(_FIELDS, draw.randint(0, 5))
    if fields:
        properties = {f"field_{at}": field for at, field in enumerate(fields)}
        required = draw.sample(sorted(properties), draw.randint(0, len(properties)))
        function["parameters"] = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": function}


def _called(draw: random.Random, tools: Sequence[Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        f"field_{at}": draw.choice((1, "é", [True])) for at in range(draw.randint(0, 2))
    }
    return {"name": draw.choice(tools)["function"]["name"], "arguments": arguments}


def digest(turns: Sequence[Turn]) -> str:
    return hashlib.sha256(json.dumps(sorted(turns)).encode()).hexdigest()[:16]


def reference(conversation: Conversation) -> list[Turn]:
    """Each of the assistant's turns as openai-harmony renders it, a call being a turn, behind what is before it.

    Reasoning is dropped once an answer follows, as docs/format.md of openai/harmony says; the package drops only that before
    the first answer.
    """
    import openai_harmony as harmony

    encoding = _encoding()
    everything = harmony.RenderConversationConfig(auto_drop_analysis=False)
    parts = _parts(conversation)
    found = []
    for at, (role, messages) in enumerate(parts):
        if role != "assistant":
            continue
        answered = max((i for i, (_, one) in enumerate(parts[:at]) if one[-1].channel == "final"), default=-1)
        before = [
            one
            for i, (_, listed) in enumerate(parts[:at])
            for one in listed
            if i > answered or one.channel != "analysis"
        ]
        assistant = harmony.Role.ASSISTANT
        prompt = encoding.render_conversation_for_completion(
            harmony.Conversation.from_messages(before), assistant, everything
        )
        whole = encoding.render_conversation_for_training(
            harmony.Conversation.from_messages([*before, *messages]), everything
        )
        assert whole[: len(prompt)] == prompt
        found.append((encoding.decode_utf8(prompt), encoding.decode_utf8(whole[len(prompt) :])))
    return found


@lru_cache
def _encoding() -> Any:
    from openai_harmony import HarmonyEncodingName, load_harmony_encoding

    return load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)


def _parts(conversation: Conversation) -> list[tuple[str, list[Any]]]:
    """(role, Harmony's messages) of each turn. Several calls of a message are turns, each before its result."""
    from openai_harmony import Author, DeveloperContent, Message, Role, SystemContent, ToolDescription

    messages, tools = list(conversation["messages"]), conversation.get("tools")
    developer, has_instructions = DeveloperContent.new(), messages[0]["role"] in ("system", "developer")
    if has_instructions:
        developer = developer.with_instructions(messages.pop(0)["content"])
    if tools:
        described = [
            ToolDescription.new(one["name"], one.get("description", ""), one.get("parameters"))
            for one in (tool["function"] for tool in tools)
        ]
        developer = developer.with_function_tools(described)
    system = SystemContent.new().with_conversation_start_date(DATE)
    parts = [("system", [Message.from_role_and_content(Role.SYSTEM, system)])]
    if has_instructions or tools:
        parts.append(("system", [Message.from_role_and_content(Role.DEVELOPER, developer)]))
    results = {one["tool_call_id"]: one["content"] for one in messages if one["role"] == "tool"}
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "user":
            parts.append((role, [Message.from_role_and_content(Role.USER, content)]))
        elif role == "system":
            again = DeveloperContent.new().with_instructions(content)
            parts.append((role, [Message.from_role_and_content(Role.DEVELOPER, again)]))
        elif role == "assistant":
            thoughts = next(
                (message[key] for key in ("reasoning_content", "reasoning", "thinking") if key in message), ""
            )
            said = (
                [Message.from_role_and_content(Role.ASSISTANT, thoughts).with_channel("analysis")]
                if thoughts
                else []
            )
            if not message.get("tool_calls"):
                said.append(Message.from_role_and_content(Role.ASSISTANT, content).with_channel("final"))
                parts.append((role, said))
                continue
            if content:
                said.append(Message.from_role_and_content(Role.ASSISTANT, content).with_channel("commentary"))
            for call in message["tool_calls"]:
                name = f"functions.{call['function']['name']}"
                arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
                made = Message.from_role_and_content(Role.ASSISTANT, arguments).with_channel("commentary")
                parts.append((role, [*said, made.with_recipient(name).with_content_type("json")]))
                result = Message.from_author_and_content(Author.new(Role.TOOL, name), results[call["id"]])
                parts.append(("tool", [result.with_channel("commentary").with_recipient("assistant")]))
                said = []
    return parts


def main() -> None:
    turns = [reference(one) for one in conversations()]
    kept = {"source": "openai-harmony 0.0.8", "turns": [*map(digest, turns)], "shown": turns[:SHOWN]}
    FIXTURE.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
