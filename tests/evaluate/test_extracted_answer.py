"""Numbers, choices and matches in answers, and their accuracy."""

from __future__ import annotations

from typing import Any

import pytest

from tailor.errors import DataError
from tailor.evaluate.rows import Question
from tailor.evaluate.tasks.answers import Measured
from tailor.evaluate.tasks.base import make_evaluators
from tailor.evaluate.tasks.extracted_answer import canonical, chosen, last_number
from tailor.spec.suite import Suite


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She sells 16 - 3 = 13 eggs.\n#### 1,234", "1234"),
        ("The total is $1,234,567.50.", "1234567.50"),
        ("It is −3.5 °C", "-3.5"),
        ("10-3", "3"),
        ("x=-7", "-7"),
        ("(-.5)", "-.5"),
        ("about 1.5e3 of them", "1.5e3"),
        ("1,2345", "2345"),
        ("答案是42。", "42"),
        ("version 1.2.3", "3"),
        ("no number", None),
        ("", None),
    ],
)
def test_the_last_number(text: str, number: str | None) -> None:
    found = last_number(text)
    assert found == number
    if number is not None and not number.startswith("1.5e3"):
        assert canonical(str(found)) == canonical(f"{number}.0" if "." not in number else f"{number}00")


LETTERS = ["A", "B", "C", "D"]


@pytest.mark.parametrize(
    ("text", "choices", "choice"),
    [
        ("B", LETTERS, "B"),
        ("(C) because A is wrong", LETTERS, "C"),
        ("**D**: the rest, A to C, is wrong.", LETTERS, "D"),
        ("A dog barks, so the answer is (B), not C.", LETTERS, "B"),
        ("Answer: A. Then C would follow.", LETTERS, "A"),
        ("Neither A nor C, so D", LETTERS, "D"),
        ("a dog", LETTERS, None),
        ("CAB", LETTERS, None),
        ("答案是C。", LETTERS, "C"),
        ("Yes, it is.", ["yes", "no"], "Yes"),
        ("I know nothing", ["yes", "no"], None),
        ("not sure, but NO", ["yes", "no", "not sure"], "not sure"),
        ("是", ["是", "否"], "是"),
    ],
)
def test_the_choice(text: str, choices: list[str], choice: str | None) -> None:
    assert chosen(text, choices) == choice


def measured(task: dict[str, Any], pairs: list[tuple[list[str], str]]) -> Measured:
    (evaluator,) = make_evaluators(
        Suite.model_validate({"tasks": [{"name": "extracted_answer", **task}]}).tasks
    )
    questions = [Question({}, [], "", "", reference) for _, reference in pairs]
    return evaluator.measure(questions, [answers for answers, _ in pairs])  # type: ignore[attr-defined]


def test_accuracy_counts_answers_without_a_number() -> None:
    pairs = [(["It is 7.0"], "#### 7"), (["seven"], "7"), (["8"], "7"), (["9"], "nine"), (["1,000"], "1000.")]
    found = measured({}, pairs)
    assert {name: one.value for name, one in found.figures.items()} == {
        "extracted_accuracy": 2 / 4,
        "extracted_share": 3 / 4,
    }
    assert list(found.notes) == [
        "extracted_answer: 1 rows are left out: their reference has no number",
        "extracted_answer: 1 answers have no number and count as wrong",
    ]
    assert found.rows[3] == {"extracted_accuracy": None, "extracted_share": None}
    with pytest.raises(
        DataError, match=r"tasks\[0\]: extracted_answer: none of the 1 references has a number"
    ):
        measured({}, [(["1"], "one")])


def test_a_regex_and_choices() -> None:
    regex = {"extract": "regex", "regex": r"<<(?P<answer>[^>]*)>>"}
    pairs = [(["<<1>> or <<Two,>>"], "<<two>>"), (["two"], "<<two>>"), (["<<03.0>>"], "<<3>>")]
    found = measured(regex, pairs)
    assert found.figures["extracted_accuracy"].value == 2 / 3
    found = measured({"extract": "choice"}, [(["The answer is B"], "B) the dog"), (["C"], "A")])
    assert found.figures["extracted_accuracy"].value == 1 / 2


def test_samples_are_averaged_and_give_pass_at_k() -> None:
    pairs = [(["1", "1", "0", "none"], "1"), (["0", "0", "0", "0"], "1"), (["1"] * 4, "1")]
    figures = measured({}, pairs).figures
    assert figures["extracted_accuracy"].value == pytest.approx((2 / 4 + 0 + 1) / 3)
    # Of the 6 pairs among 4 samples with 2 right ones, 1 has none: 5/6.
    assert figures["extracted_accuracy/pass@2"].value == pytest.approx((5 / 6 + 0 + 1) / 3)
    assert figures["extracted_accuracy/pass@4"].value == pytest.approx(2 / 3)
    assert "extracted_share/pass@2" not in figures
