"""Preference data: reading rows, supervised tokens, and truncation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailor.encode.formats import formats_of, get_format, recognize
from tailor.encode.prepare import Prepared, prepare, prepare_all
from tailor.encode.preview import preview
from tailor.encode.records import Chat, Completion, Pair, Rated, RowError, content_hash
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import DataError
from tailor.spec.data import EXAMPLES, PAIRS, RATED, Data
from tailor.spec.methods.dpo import Dpo
from tailor.spec.methods.kto import Kto
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model
from tests.helpers.models import byte_tokenizer


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt as messages": (
        "preference",
        {"prompt": [user("Go?")], "chosen": [says("Yes.")], "rejected": [says("No.")]},
    ),
    "prompt as text": ("preference", {"prompt": "Go?", "chosen": [says("Yes.")], "rejected": [says("No.")]}),
    "single messages": ("preference", {"prompt": "Go?", "chosen": says("Yes."), "rejected": says("No.")}),
    "whole conversations": (
        "preference",
        {"chosen": [user("Go?"), says("Yes.")], "rejected": [user("Go?"), says("No.")]},
    ),
    "whole conversations and their prompt": (
        "preference",
        {
            "prompt": "Go?",
            "prompt_id": "7",
            "chosen": [user("Go?"), says("Yes.")],
            "rejected": [user("Go?"), says("No.")],
            "messages": [user("Go?"), says("Yes.")],
            "score_chosen": 8.0,
        },
    ),
    "prompt's messages repeated": (
        "preference",
        {
            "prompt": [user("Go?")],
            "chosen": [user("Go?"), says("Yes.")],
            "rejected": [user("Go?"), says("No.")],
        },
    ),
    "sharegpt": (
        "preference_sharegpt",
        {"conversations": [human("Go?")], "chosen": gpt("Yes."), "rejected": gpt("No.")},
    ),
    "sharegpt, lists": (
        "preference_sharegpt",
        {"conversations": [human("Go?")], "chosen": [gpt("Yes.")], "rejected": [gpt("No.")]},
    ),
    "sharegpt, texts": (
        "preference_sharegpt",
        {"conversations": [human("Go?")], "chosen": "Yes.", "rejected": "No."},
    ),
    "sharegpt, whole": (
        "preference_sharegpt",
        {"chosen": [human("Go?"), gpt("Yes.")], "rejected": [human("Go?"), gpt("No.")]},
    ),
    "alpaca": ("preference_alpaca", {"instruction": "Go?", "input": "", "chosen": "Yes.", "rejected": "No."}),
}


@pytest.mark.parametrize("kind", ROWS)
def test_every_kind_of_row_is_recognized_and_means_the_same_pair(kind: str) -> None:
    name, row = ROWS[kind]
    assert recognize([row], {}, formats_of((PAIRS,))) == [name]
    record = get_format(name).record(row, {})
    assert record == Pair(Chat([user("Go?"), says("Yes.")]), Chat([user("Go?"), says("No.")]))


def test_texts_have_no_template() -> None:
    row = {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}
    assert recognize([row], {}, formats_of((PAIRS,))) == ["preference_text"]
    record = get_format("preference_text").record(row, {})
    assert record == Pair(Completion("2 + 2 =", " 4"), Completion("2 + 2 =", " 5"))
    mapped = {"question": "2 + 2 =", "good": " 4", "bad": " 5"}
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    assert recognize([mapped], columns, formats_of((PAIRS,))) == ["preference_text"]
    assert get_format("preference_text").record(mapped, columns) == record


@pytest.mark.parametrize("label", [True, 1, "true", "True", "1"])
def test_labeled_answers(label: Any) -> None:
    rows = {
        "unpaired": [
            {"prompt": [user("Go?")], "completion": [says("Yes.")], "label": label},
            {"prompt": "Go?", "completion": says("Yes."), "label": label},
            {"messages": [user("Go?"), says("Yes.")], "label": label},
        ],
        "unpaired_text": [{"prompt": "Go?", "completion": "Yes.", "label": label}],
    }
    for name, kinds in rows.items():
        for row in kinds:
            assert recognize([row], {}, formats_of((RATED,))) == [name]
            record = get_format(name).record(row, {})
            answer = Chat([user("Go?"), says("Yes.")]) if name == "unpaired" else Completion("Go?", "Yes.")
            assert record == Rated(answer, True)
            assert get_format(name).record({**row, "label": 0}, {}) == Rated(answer, False)


def test_only_what_follows_the_shared_start_has_weight() -> None:
    start = [{"role": "system", "content": "Be brief."}, user("Hi"), says("Hello"), user("Go?")]
    row = {"chosen": [*start, says("Yes."), user("Sure?"), says("Yes!")], "rejected": [*start, says("No.")]}
    record = get_format("preference").record(row, {})
    assert [m.get("weight", 1) for m in record.chosen.messages if m["role"] == "assistant"] == [0, 1, 1]
    assert [m.get("weight", 1) for m in record.rejected.messages if m["role"] == "assistant"] == [0, 1]
    rated = {"messages": [*start, says("Yes.")], "label": True}
    record = get_format("unpaired").record(rated, {})
    assert [m.get("weight", 1) for m in record.answer.messages if m["role"] == "assistant"] == [0, 1]


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        (
            "preference",
            {"chosen": [user("a"), says("b")], "rejected": [user("a"), says("b")]},
            "same_answers",
        ),
        ("preference_text", {"prompt": "a", "chosen": "b", "rejected": "b"}, "same_answers"),
        ("preference", {"chosen": [user("a"), says("b")], "rejected": [user("a")]}, "no_answer"),
        (
            "preference",
            {"chosen": [user("a"), says("b")], "rejected": [user("a"), says("b"), user("c")]},
            "no_answer",
        ),
        ("preference", {"chosen": [says("b")], "rejected": [says("c")]}, "no_user"),
        ("preference_text", {"prompt": "a", "chosen": "", "rejected": "b"}, "empty_answer"),
        (
            "preference_sharegpt",
            {"conversations": [human("a")], "chosen": gpt("b"), "rejected": 3},
            "wrong_type",
        ),
        ("unpaired_text", {"prompt": "a", "completion": "b", "label": "good"}, "wrong_type"),
        ("unpaired_text", {"prompt": "a", "completion": "b", "label": 2}, "wrong_type"),
        ("unpaired_text", {"prompt": "a", "completion": "b"}, "missing_key"),
        ("unpaired", {"prompt": [user("a")], "completion": [user("b")], "label": True}, "no_answer"),
    ],
)
def test_rows_that_cannot_be_compared(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        get_format(name).record(row, {})
    assert caught.value.reason == reason


def test_the_prompt_decides_the_hash() -> None:
    pair = get_format("preference_text").record({"prompt": "a", "chosen": "b", "rejected": "c"}, {})
    other = get_format("preference_text").record({"prompt": "d", "chosen": "b", "rejected": "c"}, {})
    same = get_format("preference_text").record({"prompt": "a", "chosen": "b", "rejected": "c", "id": 3}, {})
    assert content_hash(pair) == content_hash(same) != content_hash(other)


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    byte_tokenizer(tmp_path / "model")

    def made(
        rows: list[dict[str, Any]], method: Any = None, *, over_budget: bool = False, **data: Any
    ) -> Prepared:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"path": str(path), **data.pop("source", {})}
        return (prepare_all if over_budget else prepare)(
            Data(train=[source], **data),
            Model(path=str(tmp_path / "model")),
            method or Dpo(name="dpo"),
            str(tmp_path / "tokens"),
        )

    made.folder = tmp_path  # type: ignore[attr-defined]
    return made


def many(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Question {n}?", "chosen": [says(f"Yes {n}.")], "rejected": [says(f"Never {n}!")]}
        for n in range(count)
    ]


def test_the_answer_and_its_end_of_turn_are_supervised(bench: Any) -> None:
    prepared = bench(many(3))
    tokenizer = load_tokenizer(str(bench.folder / "model"))
    split = prepared.tokens.split("train")
    assert split.position.tolist() == [0, 1] * 3
    assert split.is_positive.tolist() == [True, False] * 3
    assert split.row.tolist() == [1, 1, 2, 2, 3, 3]
    for index, answer in enumerate(["Yes 0.", "Never 0!", "Yes 1.", "Never 1!"]):
        example = split.example(index)
        ((start, stop),) = example.spans
        assert tokenizer.decode(example.input_ids[start:stop]) == f"{answer}<|im_end|>"
        prompt = tokenizer.render([user(f"Question {index // 2}?")], add_generation_prompt=True)
        assert tokenizer.decode(example.input_ids[:start]) == prompt
    report = prepared.tokens.manifest["report"]["sources"][0]
    assert (report["format"], report["rows"], report["kept"], report["examples"]) == ("preference", 3, 3, 6)
    assert report["split_conversations"] == 0
    # The same tokens and masks as supervised fine-tuning has for the chosen conversation.
    rows = [{"messages": [user(f"Question {n}?"), says(f"Yes {n}.")]} for n in range(3)]
    plain = bench(rows, Sft(name="sft")).tokens.split("train")
    for n in range(3):
        ours, theirs = split.example(2 * n), plain.example(n)
        assert np.array_equal(ours.input_ids, theirs.input_ids)
        assert np.array_equal(ours.spans, theirs.spans)


def test_labels_are_kept(bench: Any) -> None:
    rows = [{"prompt": f"q{n}", "completion": f"a{n}", "label": n % 3 == 0} for n in range(6)]
    split = bench(rows, Kto(name="kto")).tokens.split("train")
    assert split.is_positive.tolist() == [n % 3 == 0 for n in range(6)]
    assert split.position.tolist() == [0] * 6


def test_a_holdout_keeps_groups_whole(bench: Any) -> None:
    tokens = bench(many(200), holdout=0.2).tokens
    train, evaluation = tokens.split("train"), tokens.split("evaluation")
    assert 20 < len(set(evaluation.row)) < 60
    assert not set(train.row) & set(evaluation.row)
    for split in (train, evaluation):
        assert split.position.tolist() == [0, 1] * (len(split) // 2)


@pytest.mark.parametrize("method", [Dpo(name="dpo"), Kto(name="kto")])
def test_answers_to_one_prompt_are_held_out_together(bench: Any, method: Dpo | Kto) -> None:
    """Three answers to each of fifty prompts; without prompts, rows are held out one by one."""

    def row(prompt: str, n: int) -> dict[str, Any]:
        if method.name == "kto":
            return {"prompt": prompt, "completion": f"a{n}", "label": n % 2 == 0}
        return {"prompt": [user(prompt)], "chosen": [says(f"a{n}")], "rejected": [says(f"b{n}")]}

    tokens = bench([row(f"q{n % 50}", n) for n in range(150)], method, holdout=0.3).tokens
    held, kept = ({int(at - 1) % 50 for at in tokens.split(name).row} for name in ("evaluation", "train"))
    assert 5 < len(held) < 25
    assert not held & kept
    if method.name == "kto":
        alone = bench([row("", n) for n in range(150)], method, holdout=0.3).tokens
        assert 20 < len(alone.split("evaluation")) < 70, "the control"


def test_the_prompt_of_a_conversation_is_what_is_not_learned() -> None:
    before = [user("Go?"), says("Where?")]
    first, second, other = (
        get_format("preference").record(
            {"prompt": [*before, user(asked)], "chosen": [says(yes)], "rejected": [says("No.")]}, {}
        )
        for asked, yes in (("Home.", "Yes."), ("Home.", "Of course."), ("Away.", "Yes."))
    )
    assert content_hash(first) == content_hash(second) != content_hash(other)


LONG = {"prompt": [user("p" * 80)], "chosen": [says("c" * 60)], "rejected": [says("r" * 20)]}
HEAD, TAIL = len("<|im_start|>"), 1


@pytest.mark.parametrize(
    ("data", "limits", "prompts", "answers"),
    [
        ({"max_length": 100}, {}, 50, (50, 22)),  # half is the prompt's
        ({"max_length": 140}, {}, 78, (62, 22)),  # the prompt has what the longest answer leaves
        ({"max_length": 300}, {"max_prompt_length": 30}, 30, (62, 22)),
        ({"max_length": 300}, {"max_completion_length": 10}, None, (10, 10)),
        ({"max_length": 100}, {"max_prompt_length": 90}, 50, (50, 22)),
    ],
)
def test_a_pair_is_truncated_as_a_pair(
    bench: Any, data: dict[str, Any], limits: dict[str, int], prompts: int | None, answers: tuple[int, int]
) -> None:
    whole = bench([LONG], max_length=2048).tokens
    start = int(whole.split("train").example(0).spans[0, 0])
    prompts = start if prompts is None else prompts
    cut = bench([LONG], Dpo(name="dpo", **limits), on_long="truncate", **data).tokens
    split, report = cut.split("train"), cut.manifest["report"]["sources"][0]
    for index, length in enumerate(answers):
        example, full = split.example(index), whole.split("train").example(index)
        assert len(example.input_ids) == prompts + length <= data["max_length"]
        assert example.spans[0, 0] == prompts
        assert np.array_equal(example.input_ids, full.input_ids[start - prompts : start + length])
    assert report["truncated"] == 1
    assert report["prompt_tokens_cut"] == 2 * (start - prompts)
    lost = whole.split("train").supervised.sum() - split.supervised.sum()
    assert report["supervised_tokens_cut"] == lost
    # Without a word from the recipe it is dropped, whole.
    dropped = bench([LONG, *many(1)], Dpo(name="dpo", **limits), over_budget=True, **data).tokens
    assert dropped.manifest["report"]["sources"][0]["dropped"]["too_long"]["count"] == 1
    assert set(dropped.split("train").row) == {2}


def test_answers_that_truncation_makes_equal_are_dropped(bench: Any) -> None:
    same = {"prompt": "q", "chosen": [says("a" * 40 + "x")], "rejected": [says("a" * 40 + "y")]}
    method = Dpo(name="dpo", max_completion_length=20)
    tokens = bench([same, *many(1)], method, on_long="truncate", over_budget=True).tokens
    loss = tokens.manifest["report"]["sources"][0]["dropped"]["same_answers"]
    assert loss["first"][0][1] == "the answers differ only in the tokens that truncation cuts"
    assert len(tokens.split("train")) == 2


def test_equal_answers_are_counted_and_rejected_over_budget(bench: Any) -> None:
    rows = [*many(3), {"prompt": "q", "chosen": [says("a")], "rejected": [says("a")]}]
    with pytest.raises(DataError, match=r"1 of 4 rows would be dropped.*\n  1 same_answers: .*:4 "):
        bench(rows)
    tokens = bench(rows, budget={"dropped": 0.5}).tokens
    assert len(tokens.split("train")) == 6


def test_the_fingerprint_sees_what_changes_tokens_and_nothing_else(bench: Any) -> None:
    def named(method: Any) -> str:
        return str(bench(many(2), method).tokens.fingerprint)

    plain = named(Dpo(name="dpo"))
    assert named(Dpo(name="dpo", max_prompt_length=900)) != plain
    assert named(Dpo(name="dpo", max_completion_length=900)) != plain
    assert named(Dpo(name="dpo", loss="ipo", beta=0.5, reference="precomputed")) == plain


TEXTS = {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}


@pytest.mark.parametrize(
    ("row", "method", "message"),
    [
        (TEXTS, Sft(name="sft"), "preference data (columns chosen and rejected), which method sft does not read; set method.name: dpo"),
        (
            {"prompt": "a", "completion": "b", "label": True},
            Sft(name="sft"),
            "answers with a label (as for KTO), which method sft does not read; set method.name: kto; to learn every answer, whatever its label, set format: completion",
        ),
        ({"prompt": "a", "completion": "b"}, Dpo(name="dpo"), "the rows have the format completion, which method dpo does not read; name the columns of the answers"),
        ({"messages": [user("a"), says("b")]}, Kto(name="kto"), "the rows have the format messages, which method kto does not read; name the column of the label"),
        (TEXTS, Kto(name="kto"), "preference data (columns chosen and rejected), which method kto does not read; set method.name: dpo"),
        (
            {"prompt": "a", "completion": "b", "label": True},
            Dpo(name="dpo"),
            "which method dpo does not read; set method.name: ",
        ),
        ({"x": 1}, Dpo(name="dpo"), "set format to one of preference, preference_text, "),
    ],
)  # fmt: skip
def test_rows_of_another_method_are_rejected(
    bench: Any, row: dict[str, Any], method: Any, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        bench([row], method)
    assert message in str(caught.value)


def test_labeled_rows_may_be_learned_with_an_explicit_format(bench: Any) -> None:
    rows = [{"prompt": "a", "completion": "b", "label": True}]
    assert len(bench(rows, Sft(name="sft"), source={"format": "completion"}).tokens.split("train")) == 1
    assert recognize(rows, {}, formats_of((EXAMPLES,))) == ["completion"]


def test_the_preview_shows_both_answers_and_what_is_cut(bench: Any) -> None:
    bench([LONG])
    data = Data(train=[{"path": str(bench.folder / "rows.jsonl")}], max_length=100, on_long="truncate")
    model = Model(path=str(bench.folder / "model"))
    (shown,) = preview(data, model, Dpo(name="dpo"), split="train", rows=3)
    assert "chosen and rejected; truncated, 11 supervised and " in shown.note
    assert len(shown.examples) == 2
    chosen = shown.examples[0]
    assert chosen[0].cut
    assert chosen[-1].cut
    assert "".join(piece.text for piece in chosen if piece.supervised and not piece.cut) == "c" * 50
