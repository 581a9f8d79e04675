"""Marks of turns that are not learned are obeyed in every format of conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.encode.formats import get_format
from tailor.encode.records import RowError
from tailor.spec.methods.sft import Sft
from tests.helpers.marked_rows import Rows, chat

OUT: list[dict[str, Any]] = [
    {"train": False},
    {"loss": False},
    {"loss_weight": 0.0},
    {"loss_weight": 0},
    {"weight": 0},
    {"mask": True},
    {"masked": True},
    {"mask": 1, "train": None},
    {"train": False, "weight": 0},
]
IN: list[dict[str, Any]] = [
    {},
    {"train": True},
    {"loss": True},
    {"loss_weight": 1.0},
    {"weight": 1},
    {"mask": False},
    {"masked": None},
]
WRONG: list[dict[str, Any]] = [
    {"loss_weight": 0.5},
    {"weight": -1},
    {"train": "false"},
    {"mask": [1]},
    {"weight": float("nan")},
    {"train": True, "weight": 0},
    {"masked": True, "loss": True},
    {"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}]},
]


def row_of(name: str, marks: dict[str, Any]) -> dict[str, Any]:
    if name == "messages":
        return chat("a", {"content": "bad", **marks}, "b", "good")
    if name == "sharegpt":
        turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "bad", **marks}]
        return {"conversations": [*turns, {"from": "human", "value": "b"}, {"from": "gpt", "value": "good"}]}
    return {
        "conversation": [{"human": "a", "assistant": "bad", **marks}, {"human": "b", "assistant": "good"}]
    }


@pytest.mark.parametrize("name", ["messages", "sharegpt", "firefly"])
def test_a_marked_turn_is_not_learned(tmp_path: Path, name: str) -> None:
    rows = Rows(tmp_path)
    for (text,) in rows.marked([row_of(name, marks) for marks in OUT]):
        assert "«bad" not in text
        assert "bad<|im_end|>" in text
        assert "«good<|im_end|>»" in text
    # The control: without a mark, or with one that says so, it is learned.
    for (text,) in rows.marked([row_of(name, marks) for marks in IN]):
        assert "«bad<|im_end|>»" in text
        assert "«good<|im_end|>»" in text


@pytest.mark.parametrize("marks", WRONG, ids=str)
@pytest.mark.parametrize("name", ["messages", "sharegpt", "firefly"])
def test_other_values_are_refused_by_name(name: str, marks: dict[str, Any]) -> None:
    with pytest.raises(RowError) as caught:
        get_format(name).record(row_of(name, marks), {})
    assert caught.value.reason == "turn_mark"
    assert any(key in caught.value.detail for key in marks)


def test_the_template_does_not_see_marks() -> None:
    record = get_format("messages").record(row_of("messages", {"loss_weight": 0.0, "mask": True}), {})
    assert record.messages[1] == {"role": "assistant", "content": "bad", "weight": 0}


@pytest.mark.parametrize("template", ["chatml", None])
def test_train_on_everything_leaves_marked_turns_out(tmp_path: Path, template: str | None) -> None:
    """With the template's own markers, and with the differences of renderings."""
    rows, everything = Rows(tmp_path), Sft(name="sft", train_on="everything")
    ((text,), (plain,)) = rows.marked(
        [chat("a", {"content": "bad", "train": False}, "b", "good"), chat("a", "bad")],
        method=everything,
        template=template,
    )
    assert text.count("«") == 2
    assert "»bad<|im_end|>«" in text
    assert text.endswith("good<|im_end|>\n»")
    assert plain.count("«") == 1
    assert "bad" in plain
