"""Queries with passages: reading rows, format detection, and truncation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tailor.encode.embedding_examples import GRITLM, TextEncoder, TextFormat
from tailor.encode.formats import formats_of, get_format, recognize
from tailor.encode.prepare import Prepared, prepare_all
from tailor.encode.records import Chat, Relevance, RowError, content_hash
from tailor.encode.template import load_template, render, render_marked
from tailor.encode.tokenizer import load_tokenizer
from tailor.encode.unused import FILLED_NEGATIVES
from tailor.errors import DataError
from tailor.spec.data import Data
from tailor.spec.methods.gritlm import Gritlm
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model
from tests.helpers.models import byte_tokenizer

PLAIN = Relevance((None, "q"), ((None, "a"),), ((None, "b"), (None, "c")))
ROWS: dict[str, tuple[str, dict[str, Any], Relevance]] = {
    "instructions": (
        "gritlm",
        {"query": ["I", "q"], "pos": [["J", "a"]], "neg": [["J", "b"], "c"]},
        Relevance(("I", "q"), (("J", "a"),), (("J", "b"), (None, "c"))),
    ),
    "an empty instruction": (
        "gritlm",
        {"query": ["", "q"], "pos": [["", "a"]], "neg": [["", "b"], ["", "c"]]},
        PLAIN,
    ),
    "strings": ("flagembedding", {"query": "q", "pos": ["a"], "neg": ["b", "c"]}, PLAIN),
    "scores and a prompt": (
        "flagembedding",
        {"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [1.0], "neg_scores": [0.1], "prompt": "I"},
        Relevance(("I", "q"), ((None, "a"),), ((None, "b"),), (1.0, 0.1)),
    ),
    "titles": (
        "tevatron",
        {
            "query_id": "7",
            "query": "q",
            "positive_passages": [{"docid": "1", "title": "", "text": "a"}],
            "negative_passages": [{"docid": "2", "text": "b"}, {"docid": "3", "title": "T", "text": "c"}],
        },
        Relevance((None, "q"), ((None, "a"),), ((None, "b"), (None, "T c"))),
    ),
    "a pair": (
        "sentence_transformers",
        {"anchor": "q", "positive": "a"},
        Relevance((None, "q"), ((None, "a"),), ()),
    ),
    "a triplet": (
        "sentence_transformers",
        {"anchor": "q", "positive": "a", "negative": "b"},
        Relevance((None, "q"), ((None, "a"),), ((None, "b"),)),
    ),
    "numbered columns": (
        "sentence_transformers",
        {"anchor": "q", "positive": "a", "negative_2": "c", "negative_1": "b", "negative_10": None},
        PLAIN,
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_row_is_recognized_and_read(case: str) -> None:
    name, row, expected = ROWS[case]
    assert recognize([row], {}, formats_of(Gritlm.reads)) == [name]
    assert get_format(name).record(row, {}) == expected


def test_columns_can_be_named() -> None:
    row = {"question": "q", "positive": "a", "wrong_1": "b", "wrong_2": "c"}
    columns = {"anchor": "question", "negative": "wrong"}
    assert recognize([row], columns, formats_of(Gritlm.reads)) == ["sentence_transformers"]
    assert get_format("sentence_transformers").record(row, columns) == PLAIN


def test_a_list_of_turns_is_a_conversation() -> None:
    row = {"text": ["Go?", "Yes.", "Sure?", "No."]}
    assert recognize([row], {}, formats_of(Gritlm.reads)) == ["turns"]
    chat = get_format("turns").record(row, {})
    assert isinstance(chat, Chat)
    assert [turn["role"] for turn in chat.messages] == ["user", "assistant"] * 2
    assert recognize([{"text": "Go?"}], {}, formats_of(Gritlm.reads)) == ["text"]


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("gritlm", {"query": "q", "pos": []}, "empty"),
        ("gritlm", {"query": ["I", " "], "pos": ["a"]}, "empty"),
        ("gritlm", {"query": "q", "pos": ["a"], "neg": [""]}, "empty"),
        ("gritlm", {"query": ["I", "q", "r"], "pos": ["a"]}, "wrong_type"),
        ("gritlm", {"query": "q", "pos": "a"}, "wrong_type"),
        ("tevatron", {"query": "q", "positive_passages": [{"title": "T"}]}, "missing_key"),
        ("turns", {"text": ["Go?", "Yes.", "And?"]}, "no_answer"),
        ("turns", {"text": []}, "empty"),
    ],
)
def test_a_row_that_cannot_be_read_has_a_reason(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        get_format(name).record(row, {})
    assert caught.value.reason == reason


def test_rows_of_one_query_are_held_out_together() -> None:
    other = Relevance((None, "q"), ((None, "x"),), ())
    assert content_hash(PLAIN) == content_hash(other)
    assert content_hash(PLAIN) != content_hash(Relevance((None, "r"), ((None, "a"),), ()))


def prepared(
    folder: Path, rows: list[dict[str, Any]], method: Any = None, bos: bool = True, **data: Any
) -> Prepared:
    byte_tokenizer(folder / "model", bos=bos)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"train": [{"path": str(folder / "rows.jsonl")}], "template": "gritlm", **data}
    method = method or Gritlm(name="gritlm", max_query_length=32)
    return prepare_all(
        Data.model_validate(values), Model(path=str(folder / "model")), method, str(folder / "tokens")
    )


def test_a_row_becomes_a_group_whose_spans_are_the_texts(tmp_path: Path) -> None:
    split = prepared(tmp_path, [ROWS["instructions"][1]]).tokens.split("train")
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    shown = []
    for number in range(len(split)):
        example = split.example(number)
        ((start, stop),) = example.spans
        assert example.input_ids[0] == tokenizer.bos_id
        shown.append(
            (
                int(split.position[number]),
                bool(split.is_positive[number]),
                tokenizer.decode(example.input_ids[1:start]),
                tokenizer.decode(example.input_ids[start:stop]),
            )
        )
        assert stop == len(example.input_ids)
    assert shown == [
        (0, True, "<|user|>\nI\n<|embed|>\n", "q"),
        (1, True, "<|user|>\nJ\n<|embed|>\n", "a"),
        (2, False, "<|user|>\nJ\n<|embed|>\n", "b"),
        (3, False, "<|embed|>\n", "c"),
    ]


def test_a_source_has_instructions_for_texts_without_one(tmp_path: Path) -> None:
    rows = [ROWS["instructions"][1], {"query": "q", "pos": ["a"], "neg": ["b"]}]

    def heads(**keys: str) -> list[str]:
        source = {"path": str(tmp_path / "rows.jsonl"), "format": "gritlm", **keys}
        split = prepared(tmp_path, rows, train=[source]).tokens.split("train")
        tokenizer = load_tokenizer(str(tmp_path / "model"))
        examples = [split.example(number) for number in range(len(split))]
        return [tokenizer.decode(one.input_ids[1 : one.spans[0][0]]).split("\n")[-3:-2] for one in examples]

    one, both = [["I"], ["J"], ["J"], []], [[], [], []]
    assert heads() == [*one, *both]
    assert heads(query_instruction="Q") == [*one, ["Q"], [], []]
    filled = [["I"], ["J"], ["J"], ["P"], ["Q"], ["P"], ["P"]]
    assert heads(query_instruction="Q", passage_instruction="P") == filled


def test_a_colon_after_an_instruction_is_removed(tmp_path: Path) -> None:
    """As in the published training; the embedder does the same."""
    split = prepared(tmp_path, [{"query": ["I:\n", "q"], "pos": [["J", "a"]], "neg": ["b"]}]).tokens.split(
        "train"
    )
    text = load_tokenizer(str(tmp_path / "model")).decode(split.example(0).input_ids[1:])
    assert text == "<|user|>\nI\n<|embed|>\nq"


def test_long_texts_are_truncated_at_the_end_or_their_rows_dropped(tmp_path: Path) -> None:
    row = {"query": ["I", "q" * 50], "pos": [["J", "a" * 50]], "neg": ["b"]}
    cut = prepared(tmp_path, [row], on_long="truncate")
    split = cut.tokens.split("train")
    assert list(split.lengths[:2]) == [32, 72]
    assert tuple(split.example(0).spans[0]) == (22, 32)
    report = cut.tokens.manifest["report"]["sources"][0]
    assert (report["truncated"], report["supervised_tokens_cut"]) == (1, 40)
    with pytest.raises(DataError, match="a query has 72 tokens; the maximum is 32"):
        prepared(tmp_path, [row], on_long="drop")
    row["query"] = ["I" * 40, "q"]
    with pytest.raises(DataError, match="an instruction with its format has 61 tokens"):
        prepared(tmp_path, [row], on_long="truncate")


def test_rows_without_negatives_are_kept_and_counted_if_the_group_size_needs_some(tmp_path: Path) -> None:
    rows = [
        {"query": ["", word], "pos": [["", "a"]], "neg": [["", "b"]][: at % 2]}
        for at, word in enumerate("pqr")
    ]
    found = prepared(tmp_path, rows).tokens.manifest["report"]["sources"][0]
    assert found["kept"] == 3
    assert found["changes"] == {FILLED_NEGATIVES: {"count": 2, "first": [f"{tmp_path}/rows.jsonl:1", ""]}}
    alone = prepared(tmp_path, rows, Gritlm(name="gritlm", group_size=1))
    assert alone.tokens.manifest["report"]["sources"][0]["changes"] == {}


def test_other_methods_name_the_method_that_reads_the_rows(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="the rows have the format gritlm, which method sft does not read"
    ) as caught:
        prepared(tmp_path, [ROWS["instructions"][1]], Sft(name="sft"))
    assert "set method.name: gritlm or rerank, or use" in str(caught.value.hint)


def test_the_template_equals_the_published_one() -> None:
    turns = [("user", "A"), ("assistant", " B "), ("user", "C"), ("assistant", "D")]
    messages = [{"role": role, "content": content} for role, content in turns]
    template, specials = load_template("gritlm"), {"bos_token": "<s>", "eos_token": "</s>"}
    text, ranges = render_marked(template, messages, None, specials)
    assert text == "<s><|user|>\nA\n<|assistant|>\nB</s>\n<|user|>\nC\n<|assistant|>\nD</s>"
    assert [text[start:stop] for start, stop in ranges] == ["B</s>", "D</s>"]
    prompt = render(template, messages[:1], None, specials, add_generation_prompt=True)
    assert text.startswith(prompt)
    assert prompt.endswith("\n<|assistant|>\n")


@pytest.mark.parametrize("adds_bos", [True, False])
def test_texts_to_embed_and_conversations_begin_as_in_the_published_training(
    tmp_path: Path, adds_bos: bool
) -> None:
    """GritLM's collator writes `<s>` before both, whether or not the tokenizer would add it."""
    from transformers import PreTrainedTokenizerFast

    (tmp_path / "chats.jsonl").write_text(json.dumps({"text": ["Go?", "Yes."]}) + "\n")
    rows = [ROWS["instructions"][1]]
    sources = [{"path": str(tmp_path / name)} for name in ("rows.jsonl", "chats.jsonl")]
    split = prepared(tmp_path, rows, bos=adds_bos, train=sources).tokens.split("train")
    theirs = PreTrainedTokenizerFast.from_pretrained(str(tmp_path / "model"))
    expected = [
        "<s><|user|>\nI\n<|embed|>\nq",
        "<s><|user|>\nJ\n<|embed|>\na",
        "<s><|user|>\nJ\n<|embed|>\nb",
        "<s><|embed|>\nc",
        "<s><|user|>\nGo?\n<|assistant|>\nYes.</s>",
    ]
    shown = [split.example(number).input_ids.tolist() for number in range(len(split))]
    assert shown == theirs(expected, add_special_tokens=False)["input_ids"]
    start, stop = split.example(0).spans[0]
    assert theirs.decode(shown[0][start:stop]) == "q", "BOS is not pooled"


def test_a_format_of_before_keeps_its_tokens(tmp_path: Path) -> None:
    """Embeddings of models that were trained without this BOS stay what they are."""
    tokenizer = load_tokenizer(str(byte_tokenizer(tmp_path)))
    before = TextFormat(GRITLM.instructed, GRITLM.plain)
    (now,), (then,) = (TextEncoder(tokenizer, one)([("I", "q")]) for one in (GRITLM, before))
    assert now.input_ids.tolist() == [tokenizer.bos_id, *then.input_ids]
    assert (now.start, then.start) == (len(now.input_ids) - 1, len(then.input_ids) - 1)


MIXED: list[dict[str, Any]] = [
    {"query": "q", "pos": ["a"], "prompt": "I"},
    {"query": ["I", "q"], "pos": [["J", "a"]]},
    {"query": "q", "pos": ["a"], "neg": [["J", "b"]]},
    {"query": ["", "q"], "pos": ["a"], "prompt": "I"},
]


@pytest.mark.parametrize("first", range(len(MIXED)))
def test_plain_rows_and_rows_with_instructions_may_be_mixed(first: int) -> None:
    """In any order, also if the first rows, by which the format is detected, are all of one kind."""
    rows = MIXED[first:] + MIXED[:first]
    (together,) = recognize(rows, {}, formats_of(Gritlm.reads))
    (alone,) = recognize(rows[:1], {}, formats_of(Gritlm.reads))
    assert together == "gritlm"
    expected = [
        Relevance(("I", "q"), ((None, "a"),), ()),
        Relevance(("I", "q"), (("J", "a"),), ()),
        Relevance((None, "q"), ((None, "a"),), (("J", "b"),)),
        Relevance(("I", "q"), ((None, "a"),), ()),
    ]
    for name in (together, alone):
        assert [get_format(name).record(row, {}) for row in MIXED] == expected


def test_two_instructions_of_a_query_are_refused() -> None:
    row = {"query": ["I", "q"], "pos": ["a"], "prompt": "J"}
    with pytest.raises(RowError, match="differs from `prompt`"):
        get_format("gritlm").record(row, {})
    assert get_format("gritlm").record({**row, "prompt": "I"}, {}).query == ("I", "q")


def test_rows_of_two_other_formats_stay_ambiguous() -> None:
    """The control of mixed rows."""
    rows = [{"query": "q", "pos": ["a"]}, {"anchor": "q", "positive": "a"}]
    found = recognize(rows, {}, formats_of(Gritlm.reads))
    assert found == ["flagembedding", "sentence_transformers"]
