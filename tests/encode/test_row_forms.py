"""Forms of rows that other trainers write are recognized and mean the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tailor.encode.formats import formats_of, get_format, recognize
from tailor.encode.records import Chat, Pair, Rated, RowError
from tailor.encode.tokenizer import load_tokenizer
from tailor.encode.turns import turn_rules
from tailor.errors import DataError, TemplateError
from tailor.spec.data import EXAMPLES, PAIRS, RATED
from tailor.spec.methods.dpo import Dpo
from tailor.spec.methods.kto import Kto
from tests.helpers.marked_rows import Rows
from tests.helpers.models import CHATML, byte_tokenizer

USER, YES, NO = ({"role": role, "content": text} for role, text in (("user", "Go?"), ("assistant", "Yes."), ("assistant", "No.")))  # fmt: skip
CALL = {"name": "weather", "arguments": {"city": "Bern"}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]}
HUMAN = {"from": "human", "value": "Go?"}


def v1(kind: str, value: str) -> dict[str, str]:
    return {"type": kind, "value": value}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("completion_messages", {"prompt": [USER], "completion": [YES]}),
        ("completion_messages", {"prompt": "Go?", "completion": [YES]}),
        ("completion_messages", {"prompt": [USER], "completion": "Yes."}),
        ("completion_messages", {"prompt": [USER], "completion": YES}),
        ("messages", {"messages": json.dumps([USER, YES])}),
        ("messages", {"conversations": json.dumps([USER, YES])}),
        ("sharegpt", {"conversations": json.dumps([HUMAN, {"from": "gpt", "value": "Yes."}])}),
        ("firefly", {"conversation": json.dumps([{"human": "Go?", "assistant": "Yes."}])}),
        (
            "messages",
            {"messages": [
                {"role": "user", "content": [v1("text", "Go"), v1("text", "?")], "loss_weight": 0.0},
                {"role": "assistant", "content": [v1("text", "Yes.")], "loss_weight": 1.0},
            ]},
        ),
        (
            "messages",
            {"messages": [
                {"role": "user", "content": [{"type": "input_text", "text": "Go?", "image_url": None}]},
                {"role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]},
            ]},
        ),
    ],
)  # fmt: skip
def test_conversations(name: str, row: dict[str, Any]) -> None:
    assert recognize([row], {}, formats_of((EXAMPLES,))) == [name]
    assert get_format(name).record(row, {}) == Chat([USER, YES])


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "", "function_call": {"name": "weather", "arguments": '{"city": "Bern"}'}},
        {"role": "assistant", "content": None, "function_call": json.dumps(CALL)},
        {"role": "assistant", "function_call": CALL, "tool_calls": None},
        {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "content": [v1("tool_call", json.dumps(CALL))]},
        {"role": "assistant", "content": "", "function_call": CALL, "tool_calls": [{"function": CALL}]},
    ],
    ids=str,
)  # fmt: skip
def test_calls_of_tools(message: dict[str, Any]) -> None:
    row = {"messages": [USER, message, {"role": "function", "name": "weather", "content": "12"}, YES]}
    record = get_format("messages").record(row, {})
    assert record.messages[1] == CALLED
    assert record.messages[2] == {"role": "tool", "name": "weather", "content": "12"}


@pytest.mark.parametrize(
    ("message", "detail"),
    [
        ({"content": "", "function_call": CALL, "tool_calls": [{"name": "other"}]}, "another `function_call`"),
        ({"content": "", "function_call": "{"}, "`function_call` is not valid JSON"),
        ({"content": [{"type": "text", "words": "x", "text": None}]}, "type 'text' without `text`; its keys: type, words"),
        ({"content": [{"type": "text", "text": 3}]}, "type 'text' whose text is a number"),
        ({"content": [["x"]]}, "a part that is a list"),
        ({"content": [{"type": "image_url", "image_url": "x"}]}, "type 'image_url'; only text is supported"),
    ],
)  # fmt: skip
def test_contents_that_cannot_be_read_say_why(message: dict[str, Any], detail: str) -> None:
    with pytest.raises(RowError) as caught:
        get_format("messages").record({"messages": [USER, {"role": "assistant", **message}]}, {})
    assert detail in caught.value.detail


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("preference", {"messages": [USER], "chosen": YES, "rejected": NO}),
        ("preference", {"messages": [USER], "chosen": [YES], "rejected": [NO]}),
        ("preference", {"messages": [USER], "chosen": "Yes.", "rejected": "No."}),
        ("preference", {"messages": [USER, YES], "chosen": [USER, YES], "rejected": [USER, NO]}),
        ("preference", {"chosen_messages": [USER, YES], "rejected_messages": [USER, NO]}),
        ("preference_sharegpt", {"conversations": [HUMAN], "chosen": "Yes.", "rejected": [HUMAN, {"from": "gpt", "value": "No."}]}),
    ],
)  # fmt: skip
def test_pairs(name: str, row: dict[str, Any]) -> None:
    assert recognize([row], {}, formats_of((PAIRS,))) == [name]
    assert get_format(name).record(row, {}) == Pair(Chat([USER, YES]), Chat([USER, NO]))


LABELS = [(True, True), (1, True), (1.0, True), ("1", True), ("1.0", True), ("True", True), (" true", True),
          (False, False), (0, False), (0.0, False), ("0", False), ("false", False)]  # fmt: skip


@pytest.mark.parametrize(("label", "expected"), LABELS, ids=str)
@pytest.mark.parametrize("column", ["label", "kto_tag"])
def test_labels(label: Any, expected: bool, column: str) -> None:
    turns = [HUMAN, {"from": "gpt", "value": "Yes."}]
    for name, row in (
        ("unpaired", {"prompt": [USER], "completion": "Yes."}),
        ("unpaired", {"messages": [USER, YES]}),
        ("unpaired_sharegpt", {"conversations": turns}),
        ("unpaired_alpaca", {"instruction": "Go?", "input": "", "output": "Yes."}),
    ):
        labeled = {**row, column: label}
        assert recognize([labeled], {}, formats_of((RATED,))) == [name]
        assert get_format(name).record(labeled, {}) == Rated(Chat([USER, YES]), expected)


@pytest.mark.parametrize("label", [0.5, 2, "good", float("nan"), [1]], ids=str)
def test_other_labels_are_refused_by_name(tmp_path: Path, label: Any) -> None:
    rows = [{"prompt": "a", "completion": "b", "label": label}]
    with pytest.raises(DataError) as caught:
        Rows(tmp_path).prepared(rows, method=Kto(name="kto"))
    assert "`label` must be true or false" in str(caught.value)
    assert "sft" not in str(caught.value)


def test_a_missing_label_or_answer_is_asked_for(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "good": 1.0}]
    with pytest.raises(DataError, match=r"columns: {label: …}"):
        Rows(tmp_path).prepared(rows, method=Kto(name="kto"))
    with pytest.raises(DataError, match=r"columns: {chosen: …, rejected: …}"):
        Rows(tmp_path).prepared(rows, method=Dpo(name="dpo"))
    # The control: what the hint says works.
    rows = [{**rows[0], "prompt": f"a{at}"} for at in range(3)]
    source = Rows(tmp_path).source(rows, method=Kto(name="kto"), source={"columns": {"label": "good"}})
    assert source["kept"] == 3


def test_a_newline_among_the_added_tokens_ends_no_turn(tmp_path: Path) -> None:
    """As in Gemma's vocabulary. The hint names templates that work, not the one that was refused."""
    folder = byte_tokenizer(tmp_path, chat_template=CHATML.replace("<|im_end|>", "<|fin|>"))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append(
        {**content["added_tokens"][0], "id": 999, "content": "\n", "special": False}
    )
    content["model"]["vocab"]["\n"] = 999
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TemplateError) as caught:
        turn_rules(load_tokenizer(str(folder)))
    assert "`<|fin|>`" in str(caught.value)
    assert "chatml" in str(caught.value.hint)  # its end of turn is a token
    gone = json.dumps(content).replace("<|im_end|>", "<|other|>").replace("</s>", "<|more|>")
    (folder / "tokenizer.json").write_text(gone)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    for name in ("chatml", "zephyr"):
        with pytest.raises(TemplateError) as caught:
            turn_rules(load_tokenizer(str(folder), template=name))
        assert name not in str(caught.value.hint)
