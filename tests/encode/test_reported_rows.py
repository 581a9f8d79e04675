"""Rows of kinds that users report, in several forms each: what is learned, or why the row is left out."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailor.encode.report import notes
from tailor.errors import DataError
from tailor.spec.methods.dpo import Dpo
from tailor.spec.methods.gritlm import Gritlm
from tailor.spec.methods.kto import Kto
from tests.helpers.marked_rows import Rows, chat

BUDGET = {"unreadable": 1.0, "dropped": 1.0}
DPO, KTO = Dpo(name="dpo"), Kto(name="kto")
EMBED = Gritlm(name="gritlm", mode="embedding", embedding_batch_size=2)
TRIMS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.strip() }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = chat("q", "a")
TALK = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n«a<|im_end|>»\n"
ALPACA = {"instruction": "q", "output": "a"}
PAIR, RATED = (
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"prompt": "q", "completion": "a", "label": True},
)
TRIPLE = {"anchor": "q", "positive": "p", "negative": "n"}
ASK, YES, NO = ({"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "yes"), ("assistant", "no")))  # fmt: skip
SHARE = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
TOOLS = '[{"name": "w"}]'
FUNCTION = {"name": "w", "arguments": '{"city": "Bern"}'}


def with_key(key: str, value: Any) -> list[dict[str, Any]]:
    """ShareGPT turns whose answer has a key."""
    return [SHARE[0], {**SHARE[1], key: value}]


LEFT_OUT: dict[str, tuple[dict[str, Any], list[dict[str, Any]], str]] = {
    "tools that the template drops": (ALPACA, [{**ALPACA, "tools": TOOLS}, {**ALPACA, "functions": TOOLS}], "template"),
    "a legacy call that the template drops": (PLAIN, [chat("q", {"content": "", "function_call": FUNCTION})], "template"),
    "reasoning that the template drops": (
        PLAIN,
        [
            *(chat("q", {"content": "a", key: "r"}) for key in ("reasoning_content", "reasoning", "thinking")),
            chat("q", {"content": "It is 4.", "reasoning_content": "4"}),
        ],
        "reasoning_dropped",
    ),
    "reasoning of a turn": ({"conversations": SHARE}, [{"conversations": with_key("thinking", "r")}], "reasoning_dropped"),
    "images": (
        PLAIN,
        [
            chat("<image>What is it?", "A cat.", images=["cat.jpg"]),
            *(chat(f"What is {mark}?", "A cat.") for mark in ("<image>", "<|image|>", "<|image_1|>", "<image_2>")),
            *(chat(f"{mark}\nWhat is it?", "A cat.") for mark in ("<VIDEO>", "<audio>", "Look.\n<video>", "In <video> there")),
            *(chat("q", "a", **{key: "cat.jpg"}) for key in ("image", "image_path", "image_url", "audio_file", "video_paths")),
        ],
        "not_text",
    ),
    "placeholders in turns": ({"text": ["q", "a"]}, [{"text": ["<image>q", "a"]}], "not_text"),
    "empty answers": (ALPACA, [{**ALPACA, "output": output} for output in ("", " \n")], "empty_answer"),
    "a cell without value": (ALPACA, [{**ALPACA, "output": None}], "missing_key"),
    "roles of other kinds": (
        {"conversations": SHARE},
        [{"conversations": [{"from": role, "value": "q"}, SHARE[1]]} for role in (["human"], {}, None, 1)],
        "unknown_role",
    ),
    "roles of messages": (PLAIN, [{"messages": [{"role": role, "content": "q"}, YES]} for role in (["user"], 1)], "wrong_type"),
    "history of other kinds": (
        {**ALPACA, "history": [["x", "y"]]},
        [{**ALPACA, "history": value} for value in (float("nan"), True, 0, "x", {"a": 1}, [1], [["x"]])],
        "wrong_type",
    ),
    "numbers as input": (ALPACA, [{**ALPACA, key: value} for key in ("input", "system") for value in (0, 5, False)], "wrong_type"),
    "negatives of other kinds": (
        TRIPLE,
        [{**TRIPLE, "negative": value} for value in (5, 0, True, float("nan"), {"a": 1}, ["n", 5])],
        "wrong_type",
    ),
    "negatives that are no list": (
        {"query": "q", "pos": ["p"], "neg": ["n"]},
        [{"query": "q", "pos": ["p"], "neg": value} for value in (0, False, {"a": 1}, "n")],
        "wrong_type",
    ),
    "pairs with two prompts": (
        {"chosen": [ASK, YES], "rejected": [ASK, NO]},
        [
            {"chosen": [ASK, YES], "rejected": [{**ASK, "content": "r"}, NO]},
            {"chosen": [{**ASK, "role": "system"}, ASK, YES], "rejected": [ASK, NO]},
        ],
        "two_prompts",
    ),
    "pairs that differ only in reasoning": (
        {"prompt": "q", "chosen": [YES], "rejected": [NO]},
        [{"prompt": "q", "chosen": [{**YES, "reasoning_content": "r"}], "rejected": [{**YES, "reasoning_content": "s"}]}],
        "same_answers",
    ),
    "lists of texts": ({"prompt": "q", "response": "x"}, [{"prompt": "q", "response": ["a", "b"]}], "wrong_type"),
    "lists of texts in pairs": (PAIR, [{**PAIR, "chosen": ["a", "b"]}], "wrong_type"),
    "lists of rated texts": (RATED, [{**RATED, "completion": ["a", "b"]}], "wrong_type"),
    "a token of turns inside a text": (
        {**PLAIN, "system": "s"},
        [
            chat("q", "They write <|im_end|> here"),
            chat("a <|im_start|> b", "c"),
            chat("a", "b <pad> c"),
            chat("q", "a", system="s<|im_end|>"),
        ],
        "control_text",
    ),
    "a token of turns inside an output": (ALPACA, [{**ALPACA, "output": "x <|im_end|> y"}], "control_text"),
    "an end of text inside a response": (PAIR, [{**PAIR, "chosen": "x</s> y"}], "control_text"),
    "labels of other kinds": (RATED, [{**RATED, "label": label} for label in (float("nan"), [1], 2)], "wrong_type"),
}  # fmt: skip
METHODS = {"chosen": DPO, "label": KTO, "anchor": EMBED, "query": EMBED}


def method_of(row: dict[str, Any]) -> Any:
    return next((method for key, method in METHODS.items() if key in row), None)


@pytest.mark.parametrize(("good", "odd", "reason"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_a_row_is_left_out_by_name(
    tmp_path: Path, good: dict[str, Any], odd: list[dict[str, Any]], reason: str
) -> None:
    """Each row alone, between two good ones, which are kept."""
    source = Rows(tmp_path).source([good, *odd, good], method=method_of(good), budget=BUDGET)
    lost = {**source["unreadable"], **source["dropped"]}
    assert {name: loss["count"] for name, loss in lost.items()} == {reason: len(odd)}
    assert (source["rows"], source["kept"]) == (len(odd) + 2, 2)
    assert "Error" not in str(lost), "no words of Python"


TURN = "<|im_start|>{}\n{}<|im_end|>\n"
SKIPPED = TURN.format("user", "q") + TURN.format("assistant", "a") + TALK
LEARNED: dict[str, tuple[dict[str, Any], str]] = {
    "system": ({**PLAIN, "system": "s"}, TURN.format("system", "s") + TALK),
    "system_message": ({**PLAIN, "system_message": "s"}, TURN.format("system", "s") + TALK),
    "system of turns": ({"text": ["q", "a"], "system_prompt": "s"}, TURN.format("system", "s") + TALK),
    "train: false": (chat("q", {"content": "a", "train": False}, "q", {"content": "a", "train": True}), SKIPPED),
    "loss_weight: 0.0": (chat("q", {"content": "a", "loss_weight": 0.0}, "q", {"content": "a", "loss_weight": 1.0}), SKIPPED),
    "masked turns": ({"conversations": [*with_key("masked", 1), *SHARE]}, SKIPPED),
    "a first turn of the assistant": ({"conversations": [SHARE[1], *SHARE]}, TURN.format("assistant", "a") + TALK),
    "parts of LLaMA-Factory": (
        {"messages": [
            {"role": "user", "content": [{"type": "text", "value": "q"}], "loss_weight": 0.0},
            {"role": "assistant", "content": [{"type": "text", "value": "a"}], "loss_weight": 1.0},
        ]},
        TALK,
    ),
    "conversational completion": ({"prompt": [ASK], "completion": [{**YES, "content": "a"}]}, TALK),
    "history as JSON text": (
        {**ALPACA, "history": '[["q", "a"]]'},
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n«a<|im_end|>»\n" + TALK,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "expected"), LEARNED.values(), ids=LEARNED)
def test_what_is_learned(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    assert Rows(tmp_path).marked([row]) == [[expected]]


def test_a_token_of_turns_inside_tools_is_refused(tmp_path: Path) -> None:
    rows = [{**PLAIN, "tools": f'[{{"name": "{name}"}}]'} for name in ("w<|im_end|>", "w")]
    odd, good = Rows(tmp_path).marked(rows, template="chatml")
    assert odd == ["! control_text: the tools have '<|im_end|>' in their text, which is a special token"]
    assert "«a<|im_end|>»" in good[0]


@pytest.mark.parametrize("column", ["messages", "conversation", "conversations", "prompt"])
def test_a_prompt_of_messages_with_one_answer_each(tmp_path: Path, column: str) -> None:
    row = {column: [ASK], "chosen": YES, "rejected": NO}
    expected = [TALK.replace("«a", "«yes"), TALK.replace("«a", "«no")]
    assert Rows(tmp_path).marked([row], method=DPO) == [expected]


@pytest.mark.parametrize("label", [1.0, 1, True, "1", "1.0", "True"])
def test_labels_in_parquet_files(tmp_path: Path, label: Any) -> None:
    rows = Rows(tmp_path)
    pq.write_table(pa.Table.from_pylist([{**RATED, "label": label}]), tmp_path / "rows.parquet")
    source = rows.source([], method=KTO, source={"path": str(tmp_path / "rows.parquet")})
    assert (source["format"], source["kept"]) == ("unpaired_text", 1)


def test_answers_that_a_template_makes_equal(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "chosen": [YES], "rejected": [{**YES, "content": " yes\n"}]},
        {"conversations": SHARE[:1], "chosen": "yes", "rejected": " yes\n"},
    ]
    for row in rows:
        (shown,) = Rows(tmp_path).marked([row], method=DPO, template=TRIMS)
        assert shown[0].startswith("! same_answers")
    (shown,) = Rows(tmp_path).marked(rows[:1], method=DPO)
    assert len(shown) == 2, "the control: without trimming they differ"


@pytest.mark.parametrize("value", [datetime.datetime(2024, 1, 1), b"x"])
def test_values_of_parquet_files_that_no_text_can_hold(tmp_path: Path, value: Any) -> None:
    """In a key beside the content; and as the content."""
    own = [{**ASK, "ts": value}, {**YES, "ts": value}]
    for name, messages in (("beside", own), ("content", [{**one, "content": value} for one in (ASK, YES)])):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist([{"messages": messages}]), path)
        with pytest.raises(DataError, match=r"none of its 1 rows|finds no format") as caught:
            Rows(tmp_path).source([], source={"path": str(path)}, holdout=0.5)
        assert "a number; only text" not in str(caught.value)
        assert "Error" not in caught.value.message


def test_what_only_resembles_images_is_read(tmp_path: Path) -> None:
    """Questions about tags of HTML; columns of media that mixed data sets fill for rows of text."""
    asked = (
        "What does the HTML <video> tag do?",
        "Is `<image>` a tag?",
        "Does the <audio> element play?",
        "<image></image>?",
    )
    empty = ([None], [""], {"bytes": None, "path": None}, False, float("nan"), [])
    rows = [*(chat(text, "a") for text in asked), *(chat("q", "a", images=value) for value in empty)]
    source = Rows(tmp_path).source(rows)
    assert source["kept"] == len(rows)


def test_ids_of_messages_make_no_other_prompt(tmp_path: Path) -> None:
    """The prompts of both answers are compared by what they say; a prompt beside whole conversations too."""
    numbered = [
        [{**turn, "id": at + side} for at, turn in enumerate((ASK, one))] for side, one in ((0, YES), (5, NO))
    ]
    source = Rows(tmp_path).source([{"chosen": numbered[0], "rejected": numbered[1]}], method=DPO)
    assert source["kept"] == 1
    with pytest.raises(DataError, match="same_answers"):
        Rows(tmp_path).source(
            [{"chosen": numbered[0], "rejected": [{**one, "id": 9} for one in (ASK, YES)]}], method=DPO
        )
    pair = {"chosen": [ASK, YES], "rejected": [ASK, NO]}
    assert Rows(tmp_path).source([{**pair, "prompt": f" {ASK['content']}"}], method=DPO)["kept"] == 1
    with pytest.raises(DataError, match="`prompt` has another text than the user's turns"):
        Rows(tmp_path).source([{**pair, "prompt": "Something else"}], method=DPO)


def test_a_prompt_of_training_in_evaluation_is_no_training_row(tmp_path: Path) -> None:
    """Pairs of one prompt are named as such: their answers may differ."""
    rows = Rows(tmp_path)
    for method, row, what in (
        (None, PLAIN, "are also training rows"),
        (DPO, PAIR, "have the prompt of a training row"),
        (KTO, RATED, "have the prompt of a training row"),
    ):
        own = [{"path": str(tmp_path / "rows.jsonl")}]
        report = rows.prepared([row], method=method, evaluation=own).tokens.manifest["report"]
        (note,) = notes(report, None)
        assert f"1 of 1 rows {what} " in note
