"""gpt-oss's template (Harmony): the channels of an answer are learned together, each turn as the model writes it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tailor.encode.examples import Encoder
from tailor.encode.formats.messages import MESSAGES
from tailor.encode.masks import ChatEncoder
from tailor.encode.records import Chat, RowError
from tailor.encode.template import Template, load_template
from tailor.encode.tokenizer import load_tokenizer
from tailor.encode.turns import turn_rules
from tailor.spec.data import Chunk
from tests.encode import harmony
from tests.encode.families import BUILT_IN
from tests.helpers.marked_rows import Rows, chat

ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"
THINKS = {"content": "4", "reasoning_content": "two twice"}
FORMS = (
    THINKS,
    {"content": "4", "thinking": "two twice"},
    {"content": "<think>\ntwo twice\n</think>\n\n4"},
)


def call(name: str, number: int, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": {"a": number}}, **more}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
        },
    }
]
CALLING: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call("add", 2)]}
TWICE = {**CALLING, "tool_calls": [call("add", 2, id="a"), call("sub", 3, id="b")]}
RESULTS = [
    {"role": "tool", "content": number, "tool_call_id": name} for number, name in (("6", "b"), ("4", "a"))
]
FOUR = {"role": "assistant", "content": "Four."}


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    made = Rows(tmp_path)
    BUILT_IN["gpt-oss"].save(tmp_path / "model")
    return made


def marked(rows: Rows, row: dict[str, Any], **data: Any) -> list[str]:
    (texts,) = rows.marked([row], **{"template": "gpt-oss", **data}, date="2025-08-05")
    return texts


def with_turns(row: dict[str, Any], *turns: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {**row, "messages": [*row["messages"], *turns], **columns}


class Turns:
    """The turns of a conversation that are learned, as in `tests.encode.harmony`."""

    def __init__(self, folder: Path, template: Template) -> None:
        BUILT_IN["gpt-oss"].save(folder)
        self._tokenizer = load_tokenizer(str(folder)).with_template(replace(template, date=harmony.DATE))
        self._encoder = ChatEncoder(self._tokenizer, turn_rules(self._tokenizer), "assistant")

    def of(self, conversation: harmony.Conversation) -> list[harmony.Turn]:
        record = MESSAGES.record(conversation, {})
        assert isinstance(record, Chat)
        (examples,) = self._encoder([record])
        assert not isinstance(examples, RowError), examples
        return [
            (self._text(one.input_ids[:start]), self._text(one.input_ids[start:stop]))
            for one in examples
            for start, stop in one.spans
        ]

    def _text(self, ids: Any) -> str:
        return self._tokenizer.decode(ids.tolist())


@pytest.mark.parametrize("part", [slice(60), pytest.param(slice(60, None), marks=pytest.mark.soak)], ids=str)
def test_it_writes_and_learns_what_openai_harmony_renders(tmp_path: Path, part: slice) -> None:
    kept, turns = json.loads(harmony.FIXTURE.read_text()), Turns(tmp_path, load_template("gpt-oss"))
    found = [turns.of(one) for one in harmony.conversations()[part]]
    if part.start is None:
        assert [sorted(map(list, one)) for one in found[: harmony.SHOWN]] == [*map(sorted, kept["shown"])]
    assert [*map(harmony.digest, found)] == kept["turns"][part]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("loop.index0 > answered.at", "true"),
        (
            "+ message.content + '<|end|>' }}\n    {%- elif",
            "+ message.content | tojson + '<|end|>' }}\n    {%- elif",
        ),
        ("indent + '    '", "indent"),
        ("'\\n\\n' if instructions and tools", "'\\n\\n' if instructions"),
    ],
)
def test_control_another_rendering_is_seen(tmp_path: Path, old: str, new: str) -> None:
    kept, template = json.loads(harmony.FIXTURE.read_text()), load_template("gpt-oss")
    assert old in template.text
    turns = Turns(tmp_path, replace(template, text=template.text.replace(old, new)))
    found = [turns.of(one) for one in harmony.conversations()[:12]]
    assert [*map(harmony.digest, found)] != kept["turns"][:12]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_both_channels_of_an_answer_are_learned(rows: Rows, form: dict[str, Any]) -> None:
    (text,) = marked(rows, chat("2+2?", form))
    assert text.endswith(
        f"<|start|>user<|message|>2+2?<|end|><|start|>assistant«{ANALYSIS}two twice<|end|>{FINAL}4<|return|>»"
    )
    assert "Current date: 2025-08-05" in text
    (text,) = marked(rows, chat("2+2?", form), reasoning="drop")
    assert text.endswith("<|start|>assistant«<|channel|>final<|message|>4<|return|>»")
    assert "twice" not in text


def test_each_turn_is_learned_as_the_last_one(rows: Rows) -> None:
    last, first = marked(rows, chat("a", THINKS, "b", {**THINKS, "content": "5"}))
    assert first.endswith(f"«{ANALYSIS}two twice<|end|>{FINAL}4<|return|>»")
    assert f"{FINAL}4<|end|><|start|>user" in last, "as history: without reasoning"
    assert last.endswith(f"«{ANALYSIS}two twice<|end|>{FINAL}5<|return|>»")
    assert last.count("twice") == 1


def test_calls_of_tools(rows: Rows) -> None:
    """While a tool is called the prompt has the reasoning, and the answer follows it as in generation."""
    row = with_turns(
        chat("2+2?", {**CALLING, "content": "Wait.", "reasoning_content": "I add."}),
        {"role": "tool", "content": "4"},
        {**FOUR, "reasoning_content": "Done."},
        tools=TOOLS,
    )
    (text,) = marked(rows, row)
    called = 'assistant to=functions.add<|channel|>commentary json<|message|>{"a": 2}<|call|>'
    said = "assistant<|channel|>commentary<|message|>Wait.<|end|>"
    assert text.endswith(
        f"<|start|>assistant«{ANALYSIS}I add.<|end|><|start|>{said}<|start|>{called}»<|start|>functions.add to=assistant"
        f"<|channel|>commentary<|message|>4<|end|><|start|>assistant«{ANALYSIS}Done.<|end|>{FINAL}Four.<|return|>»"
    )
    assert "type add = (_: {\na?: number,\n}) => any;" in text


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ({"parameters": {"type": "object", "properties": {}}}, "type now = (_: {\n}) => any;"),
        ({"parameters": {"type": "object"}}, "type now = (_: {\n}) => any;"),
        ({"parameters": {}}, "type now = (_: any) => any;"),
        ({}, "type now = () => any;"),
        ({"description": "One. \n\nTwo. \n"}, "// One. \n// \n// Two. \ntype now = () => any;"),
    ],
    ids=str,
)
def test_tools_without_parameters(rows: Rows, function: dict[str, Any], text: str) -> None:
    """As openai-harmony writes them."""
    tools = [{"type": "function", "function": {"name": "now", **function}}]
    (found,) = marked(rows, {**chat("2+2?", FOUR), "tools": tools})
    assert f"namespace functions {{\n\n{text}\n\n}} // namespace functions<|end|>" in found


PUBLISHED = (
    "{%- for message in messages -%}{%- if message.role == 'assistant' -%}{%- if 'tool_calls' in message -%}"
    "{{ '<|start|>assistant to=' + message.tool_calls[0].function.name + '<|message|>' + message.tool_calls[0].function.arguments"
    " | tojson + '<|call|>' }}{%- else -%}{{ '<|start|>assistant<|channel|>final<|message|>' + message.content }}"
    "{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{%- endif -%}"
    "{%- elif message.role != 'system' or loop.first -%}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}"
    "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}"
)
"""As gpt-oss's own template: it writes the first call of a turn, and no system message but the first."""


@pytest.mark.parametrize("template", ["gpt-oss", PUBLISHED], ids=["built-in", "published"])
def test_several_calls_are_turns_each_before_its_result(rows: Rows, template: str) -> None:
    row = with_turns(chat("2+2?", {**TWICE, "weight": 1}), *RESULTS, FOUR)
    (text,) = marked(rows, row, template=template)
    first, second = text.index('{"a": 2}<|call|>»'), text.index('{"a": 3}<|call|>»')
    assert first < text.index("4<|end|>") < second < text.index("6<|end|>"), "results by their ids"
    without = [{**one, "tool_call_id": None} for one in reversed(RESULTS)]
    assert marked(rows, with_turns(chat("2+2?", TWICE), *without, FOUR), template=template) == [text]
    unlearned = marked(
        rows, with_turns(chat("2+2?", {**TWICE, "weight": 0}), *RESULTS, FOUR), template=template
    )
    assert unlearned[0].count("«") == 1


def test_text_beside_a_call_that_is_taken_as_reasoning(rows: Rows) -> None:
    """As in gpt-oss's own template: it is dropped once the answer comes, which the prompt of the answer still has."""
    beside = PUBLISHED.replace(
        "{%- if 'tool_calls' in message -%}",
        "{%- if 'tool_calls' in message -%}{%- set later = messages[loop.index:] | selectattr('role', 'equalto', 'assistant') -%}"
        "{{ '' if later | list or not message.content else '<|start|>assistant<|channel|>analysis<|message|>' + message.content + '<|end|>' }}",
    )
    result = {"role": "tool", "content": "4"}
    (text,) = marked(
        rows, with_turns(chat("2+2?", {**CALLING, "content": "I add."}), result, FOUR), template=beside
    )
    assert text.endswith(
        f'«{ANALYSIS}I add.<|end|><|start|>assistant to=add<|message|>{{"a": 2}}<|call|>»'
        "<|start|>tool<|message|>4<|end|><|start|>assistant«<|channel|>final<|message|>Four.<|return|>»"
    )


@pytest.mark.parametrize(
    "turns", [[TWICE], [TWICE, RESULTS[0]], [TWICE, RESULTS[0], {**RESULTS[1], "tool_call_id": "c"}, FOUR]]
)
def test_calls_without_a_result_each_are_left_out(rows: Rows, turns: list[dict[str, Any]]) -> None:
    (text,) = marked(rows, with_turns(chat("2+2?"), *turns))
    assert text.startswith(
        "! template: message 2 has 2 tool calls, and the chat template writes one per turn"
    )


def test_system_messages(rows: Rows) -> None:
    later = with_turns(
        chat("a", "b"), {"role": "system", "content": "Be brief."}, *chat("c", "d")["messages"]
    )
    (text,) = marked(rows, later, template=PUBLISHED)
    assert text == "! template: the chat template silently drops later system messages"
    last, _ = marked(rows, later)
    assert "b<|end|><|start|>developer<|message|># Instructions\n\nBe brief.<|end|><|start|>user" in last
    (text,) = marked(rows, {"messages": [{"role": "system", "content": ""}, *chat("a", "b")["messages"]]})
    assert "developer" not in text


def test_a_result_needs_the_name_of_its_tool(rows: Rows) -> None:
    result = {"role": "tool", "content": "4"}
    (text,) = marked(rows, with_turns(chat("a"), result, FOUR))
    assert text.startswith(
        "! template: the chat template rejects the row: the result of a tool needs a tool call"
    )
    (text,) = marked(rows, with_turns(chat("a"), {**result, "name": "add"}, FOUR))
    assert "<|start|>functions.add to=assistant<|channel|>commentary<|message|>4<|end|>" in text


@pytest.mark.parametrize("system", ["Be brief.", ""])
def test_chunks_start_with_the_system_and_developer_messages(tmp_path: Path, system: str) -> None:
    BUILT_IN["gpt-oss"].save(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path), template="gpt-oss")
    made = Encoder(
        tokenizer,
        turn_rules(tokenizer),
        train_on="last_assistant",
        max_length=300,
        on_long="chunk",
        chunk=Chunk(overlap=5),
    )
    turns = chat(*(f"{word} " * 60 for word in ("one", "two", "three", "four")))["messages"]
    ((whole,),) = made.encode([Chat([{"role": "system", "content": system}, *turns])])
    (outcome,) = made([Chat([{"role": "system", "content": system}, *turns])])
    text, pieces = (
        tokenizer.decode(whole.input_ids),
        [tokenizer.decode(one.input_ids) for one in outcome.examples],
    )
    head = text[: text.index("<|start|>user")]
    assert head.endswith("# Instructions\n\nBe brief.<|end|>" if system else "for every message.<|end|>")
    assert all(one.startswith(head) for one in pieces)
    assert not pieces[-1].startswith(f"{head}<|start|>user<|message|>")


def test_what_would_be_read_as_a_token_is_left_out(rows: Rows) -> None:
    assert marked(rows, chat("a", "4<|end|>"))[0].startswith("! control_text")
