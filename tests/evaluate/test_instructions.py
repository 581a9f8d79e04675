"""Checks of instructions, each with answers that pass and that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import DataError
from tailor.evaluate.batches import GENERATE, SAMPLE, EvaluationBatch
from tailor.evaluate.task_inputs import Collected, question_inputs
from tailor.evaluate.tasks.base import make_evaluators
from tailor.evaluate.tasks.instructions import PART, check_of, instruction_questions
from tailor.spec.suite import Suite
from tailor.spec.tasks.rows import Questions
from tests.helpers.evaluations import write_rows
from tests.helpers.models import byte_tokenizer


@pytest.mark.parametrize(
    ("check", "passes", "fails"),
    [
        ({"words": {"min": 2, "max": 3}}, ["one two", "我爱你"], ["one", "a b c d", ""]),
        ({"words": {"max": 1, "min": None}, "json": None}, ["", "one"], ["one two"]),
        ({"characters": {"max": 3}}, [" abc\n"], ["abcd"]),
        ({"lines": {"min": 2}}, ["a\n\nb"], ["a\n", "a b"]),
        ({"paragraphs": {"min": 2, "max": 2}}, ["a\nb\n \nc\n"], ["a\nb", "a\n\nb\n\nc"]),
        ({"bullets": {"min": 2}}, ["- a\n* b", "1. a\n 2) b"], ["- a", "a - b\nc * d"]),
        ({"contains": ["Tea", "milk"]}, ["milk in the TEA"], ["tea"]),
        ({"excludes": ["tea"]}, ["milk"], ["Milk, TEAS"]),
        ({"starts_with": "Dear"}, ["\nDear all"], ["dear all"]),
        ({"ends_with": "?"}, ["What? "], ["What?!"]),
        ({"case": "lower"}, ["é is 1!"], ["É", "1!"]),
        ({"case": "upper"}, ["ABC 1"], ["ABc", ""]),
        (
            {"json": True},
            ['{"a": [1]}', "```json\n[1]\n```", " 3 "],
            ["{a: 1}", "Here: {}", "", "[" * 100000],
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_check(check: dict[str, Any], passes: list[str], fails: list[str]) -> None:
    found = check_of(check, "x:1")
    assert [found(answer) for answer in passes] == [True] * len(passes)
    assert [found(answer) for answer in fails] == [False] * len(fails)


@pytest.mark.parametrize(
    "check",
    [
        {"words": {"min": "2"}}, {"words": {}}, {"words": {"least": 2}}, {"words": {"max": True}}, {"words": 3},
        {"contains": "tea"}, {"contains": []}, {"contains": [""]}, {"starts_with": 1}, {"case": "title"},
        {"case": ["upper"]}, {"json": False}, {"sentences": {"max": 1}}, {"json": True, "case": "lower"}, {}, "json",
    ],
    ids=str,
)  # fmt: skip
def test_wrong_checks_name_their_row(check: Any) -> None:
    with pytest.raises(DataError, match=r"^x:7: "):
        check_of(check, "x:7")


def test_strict_and_followed(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(byte_tokenizer(tmp_path / "tokenizer")))
    rows = [
        {"question": "a?", "checks": [{"words": {"max": 2}}, {"contains": ["tea"]}]},
        {"question": "b?", "checks": [{"case": "upper"}]},
    ]
    path = str(write_rows(tmp_path / "rows.jsonl", rows))
    task = {"name": "instructions", "data": {"path": path}}
    (evaluator,) = make_evaluators(Suite.model_validate({"tasks": [task]}).tasks)
    found = instruction_questions(Questions(path=path), "data", tokenizer, plain=True)
    collected = Collected()
    answers = [["tea, please", "I want tea"], ["NO", "NO"]]
    for sample in range(2):
        ids = [tokenizer.encode(own[sample]) for own in answers]
        items = (sample * SAMPLE, 1 + sample * SAMPLE)
        collected.add(EvaluationBatch("m", PART, GENERATE, items, ((), ())), ids)
    outcome = evaluator.judge(question_inputs(PART, found, tokenizer), collected)
    assert {name: one.value for name, one in outcome.figures.items()} == {
        "instructions_strict": (1 / 2 + 1) / 2,
        "instructions_followed": ((1 + 1 / 2) / 2 + 1) / 2,
        "instructions_strict/pass@2": 1,
    }
    assert outcome.rows[0][1]["passed"] == [True, True]
