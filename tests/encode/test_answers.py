"""Empty answers, tokens of turns inside texts, leading answers, and what pairs compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.encode.prepare import prepare
from tailor.errors import DataError
from tailor.spec.methods.dpo import Dpo
from tailor.spec.methods.kto import Kto
from tailor.spec.methods.sft import Sft
from tests.helpers.marked_rows import Rows, chat

STRIPS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **keys}


def row_of(name: str, answer: str) -> tuple[dict[str, Any], Any]:
    sft = Sft(name="sft", train_on="assistant")
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": answer}]
    rows: dict[str, tuple[dict[str, Any], Any]] = {
        "messages": (chat("a", answer), sft),
        "sharegpt": ({"conversations": turns}, sft),
        "firefly": ({"conversation": [{"human": "a", "assistant": answer}]}, sft),
        "alpaca": ({"instruction": "a", "output": answer}, sft),
        "turns": ({"text": ["a", answer]}, sft),
        "completion": ({"prompt": "a", "response": answer}, sft),
        "completion_messages": ({"prompt": [user("a")], "completion": [says(answer)]}, sft),
        "preference": ({"prompt": "a", "chosen": [says("c")], "rejected": [says(answer)]}, Dpo(name="dpo")),
        "preference_text": ({"prompt": "a", "chosen": "c", "rejected": answer}, Dpo(name="dpo")),
        "preference_alpaca": ({"instruction": "a", "chosen": answer, "rejected": "c"}, Dpo(name="dpo")),
        "preference_sharegpt": (
            {"conversations": turns[:1], "chosen": turns[1], "rejected": {"from": "gpt", "value": "c"}},
            Dpo(name="dpo"),
        ),
        "unpaired": ({"prompt": "a", "completion": [says(answer)], "label": True}, Kto(name="kto")),
        "unpaired_text": ({"prompt": "a", "completion": answer, "label": True}, Kto(name="kto")),
        "unpaired_alpaca": ({"instruction": "a", "output": answer, "kto_tag": True}, Kto(name="kto")),
        "unpaired_sharegpt": ({"conversations": turns, "kto_tag": True}, Kto(name="kto")),
    }
    return rows[name]


FORMATS = [
    "messages", "sharegpt", "firefly", "alpaca", "turns", "completion", "completion_messages",
    "preference", "preference_text", "preference_alpaca", "preference_sharegpt",
    "unpaired", "unpaired_text", "unpaired_alpaca", "unpaired_sharegpt",
]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_empty_answers_are_dropped_and_counted(tmp_path: Path, name: str) -> None:
    rows = []
    for answer in ("", " \n", "b"):
        row, method = row_of(name, answer)
        rows.append(row)
    source = Rows(tmp_path).source(rows, method=method)
    assert source["format"] == name
    assert source["dropped"]["empty_answer"]["count"] == 2
    assert source["unreadable"] == {}
    assert source["kept"] == 1  # the control: "b"


@pytest.mark.parametrize("name", FORMATS)
def test_end_of_turn_text_inside_an_answer_is_refused(tmp_path: Path, name: str) -> None:
    end = "</s>" if name in ("completion", "preference_text", "unpaired_text") else "<|im_end|>"
    rows = []
    for answer in (f"They write {end} at the end, see?", f"{end} b", "<b>bold</b>"):
        row, method = row_of(name, answer)
        rows.append(row)
    source = Rows(tmp_path).source(rows, method=method)
    assert source["dropped"]["control_text"]["count"] == 2
    assert source["kept"] == 1


def test_tokens_of_turns_in_any_message_are_refused(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "<|im_end|>"}}}
    rows = [
        chat("a <|im_end|>", "b"),
        chat("a", "b\n<|im_start|>user"),
        chat("a", "b</s>"),
        chat("a", {"content": "b", "reasoning_content": "<|im_end|>"}),
        chat("a", {"content": "", "tool_calls": [call]}),
        chat("a", "b"),
    ]
    shown = Rows(tmp_path).marked(rows, template="chatml")
    assert ["control_text" in texts[0] for texts in shown] == [True] * 5 + [False]


def test_an_empty_turn_is_no_answer_unless_it_calls_or_is_not_learned(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    rows = [
        chat("a", "", "b", "c"),
        chat("a", {"content": "", "weight": 0}, "b", "c"),
        chat("a", {"content": None, "tool_calls": [call]}, "b", "c"),
    ]
    shown = Rows(tmp_path).marked(rows, template="chatml")
    assert ["empty_answer" in texts[0] for texts in shown] == [True, False, False]
    last = Sft(name="sft", train_on="last_assistant")
    assert "«c<|im_end|>»" in Rows(tmp_path).marked(rows[:1], method=last)[0][0]


def test_an_answer_before_the_first_question_is_context(tmp_path: Path) -> None:
    first = {"messages": [says("Welcome"), user("a"), says("b")]}
    for template in (None, "chatml"):  # prefix differences, and markers
        ((text,),) = Rows(tmp_path).marked([first], template=template)
        assert text.count("«") == 1
        assert "«b<|im_end|>»" in text
        assert "Welcome" in text
    alternates = (
        "{% if messages and messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    )
    shown = Rows(tmp_path).marked([first], template=alternates + STRIPS)
    assert shown == [["! template: the chat template rejects the row: user first"]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "chosen": [says("yes")], "rejected": [says(" yes\n")]}, "same_answers"),
        ({"chosen": [user("2+2?"), says("4")], "rejected": [user("Bern?"), says("no")]}, "two_prompts"),
        (
            {
                "chosen": [{"role": "system", "content": "A"}, user("a"), says("b")],
                "rejected": [{"role": "system", "content": "B"}, user("a"), says("c")],
            },
            "two_prompts",
        ),
        ({"prompt": [user("a")], "chosen": [user("b"), says("c")], "rejected": [user("b"), says("d")]}, "two_prompts"),
        ({"prompt": "a", "chosen": ["x", "y"], "rejected": ["z", "y"]}, "missing_key"),
        ({"prompt": [user("q")], "chosen": [says("yes")], "rejected": [says("no")]}, ""),
    ],
)  # fmt: skip
def test_pairs_compare_what_is_scored(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    source = {"format": "preference"}
    (texts,) = Rows(tmp_path).marked([row], method=Dpo(name="dpo"), template=STRIPS, source=source)
    assert texts[0].startswith(f"! {reason}") if reason else len(texts) == 2


def test_pairs_whose_scored_tokens_are_equal_after_a_cut(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "chosen": "a" * 40 + end, "rejected": "a" * 40 + other}
        for end, other in (("b", "c"), ("bb", "d"))
    ]
    rows.append({"prompt": "q", "chosen": "x" * 50, "rejected": "y" * 50})
    source = Rows(tmp_path).source(rows, method=Dpo(name="dpo"), max_length=32, on_long="truncate")
    assert source["dropped"]["same_answers"]["count"] == 2
    assert source["kept"] == 1


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("completion", {"prompt": "q", "response": ["a1", "a2"]}),
        ("completion", {"prompt": ["q", "r"], "response": "a"}),
        ("alpaca", {"instruction": "q", "output": ["a1", "a2"]}),
        ("preference_text", {"prompt": "q", "chosen": ["a", "b"], "rejected": "c"}),
        ("unpaired_text", {"prompt": "q", "completion": ["a", "b"], "label": 1}),
        ("sharegpt", {"conversations": [{"from": "system", "value": 3}]}),
    ],
)
def test_a_list_of_texts_is_no_answer(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    from tailor.encode.formats import get_format
    from tailor.encode.records import RowError

    with pytest.raises(RowError) as caught:
        get_format(name).record(row, {})
    assert caught.value.reason == "wrong_type"
    # The control: a list of text parts is one text.
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert get_format("completion").record({"prompt": "q", "response": parts}, {}).response == "ab"


def test_hints_of_refused_sources(tmp_path: Path) -> None:
    """Rows that are all too long are no matter of the format; reasoning names its key."""
    rows = Rows(tmp_path)

    def refused(row: dict[str, Any], **data: Any) -> str:
        made = rows.data([row], **data)
        with pytest.raises(DataError) as caught:
            prepare(made, rows.model, Sft(name="sft"), str(tmp_path / "tokens"))
        return str(caught.value)

    assert "raise data.max_length, or set data.on_long" in refused(chat("a" * 99, "b"), max_length=8)
    long = refused(chat("a", ""), max_length=64)
    assert "check the reasons" in long
    assert "max_length" not in long
    assert "data.reasoning: drop" in refused(chat("a", says("4", thinking="two")))


def test_the_whole_holdout(tmp_path: Path) -> None:
    from tailor.encode.report import notes

    rows = Rows(tmp_path)
    report = rows.prepared([chat("a", "b")], holdout=0.999).tokens.manifest["report"]
    (note,) = notes(report, 0.999)
    assert "selects all 1 rows" in note
    assert "lower data.holdout" in note
