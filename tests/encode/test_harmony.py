"""gpt-oss's template (Harmony): the channels of an answer are learned together, each turn as the model writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.encode.families import BUILT_IN
from tests.helpers.marked_rows import Rows, chat

ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"
THINKS = {"content": "4", "reasoning_content": "two twice"}
FORMS = (
    THINKS,
    {"content": "4", "thinking": "two twice"},
    {"content": "<think>\ntwo twice\n</think>\n\n4"},
)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
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
CALLING: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    made = Rows(tmp_path)
    BUILT_IN["gpt-oss"].save(tmp_path / "model")
    return made


def marked(rows: Rows, row: dict[str, Any], **data: Any) -> list[str]:
    (texts,) = rows.marked([row], template="gpt-oss", date="2025-08-05", **data)
    return texts


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
    row = chat("2+2?", {**CALLING, "reasoning_content": "I add."})
    row["messages"] += [
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "Four.", "reasoning_content": "Done."},
    ]
    (text,) = marked(rows, {**row, "tools": TOOLS})
    called = 'assistant to=functions.add<|channel|>commentary json<|message|>{"a": 2}<|call|>'
    assert text.endswith(
        f"<|start|>assistant«{ANALYSIS}I add.<|end|><|start|>{called}»<|start|>functions.add to=assistant<|channel|>commentary"
        f'<|message|>"4"<|end|><|start|>assistant«{ANALYSIS}Done.<|end|>{FINAL}Four.<|return|>»'
    )
    assert "type add = (_: {\na?: number,\n}) => any;" in text


def test_what_it_cannot_write_is_left_out(rows: Rows) -> None:
    twice = {**CALLING, "tool_calls": [CALL, CALL]}
    assert marked(rows, {**chat("2+2?", twice), "tools": TOOLS})[0].startswith(
        "! template: the chat template"
    )
    nested = {"type": "object", "properties": {"a": {"type": "object"}}}
    tools = [{"type": "function", "function": {"name": "a", "description": "b", "parameters": nested}}]
    assert "plain parameters" in marked(rows, {**chat("a", "b"), "tools": tools})[0]
    assert marked(rows, chat("a", "4<|end|>"))[0].startswith("! control_text")
