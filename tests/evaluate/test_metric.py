"""A function of the user as a metric: its results, its errors, and how it is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.errors import DataError, TailorError
from tailor.evaluate.rows import Question
from tailor.evaluate.tasks.answers import Measured
from tailor.evaluate.tasks.metric import MetricEvaluator, load
from tailor.spec.tasks.metric import Metric

CODE = """
import sys
from dataclasses import dataclass
from beside import FACTOR

@dataclass
class Score:
    value: float

def length(answer, reference, row):
    if answer == "boom":
        raise ValueError("no\\nway")
    if answer == "exit":
        sys.exit(3)
    if answer == "nan":
        return float("nan")
    if answer == "text":
        return "1"
    if answer == "skip":
        return None
    return Score(FACTOR * len(answer) + row.get("bonus", 0)).value

def several(answer, reference, row):
    return {"same": answer == reference, **({"rare": 0.5} if answer == "b" else {})}

def chatty(answer, reference, row):
    print("chatty")
    return {answer: 1}

def wrong(answer):
    return 1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("FACTOR = 2\n")
    path = tmp_path / "my.py"
    path.write_text(CODE)
    return path


def measured(function: str, answers: list[str], rows: list[dict[str, Any]] | None = None) -> Measured:
    evaluator = MetricEvaluator(Metric(name="metric", function=function), "tasks[0]")
    evaluator.require()
    evaluator._rows = rows or [{} for _ in answers]
    questions = [Question({"file": "x.jsonl", "row": at + 1}, [], "", "", "a") for at in range(len(answers))]
    return evaluator.measure(questions, [[one] for one in answers])


def test_a_number_per_row(file: Path) -> None:
    found = measured(f"{file}:length", ["abc", "abcde", "skip"], [{"bonus": 1}, {}, {}])
    assert list(found.figures) == ["metric/length"]
    assert found.figures["metric/length"].value == (7 + 10) / 2
    assert not found.figures["metric/length"].is_share
    assert found.rows[2] == {"metric/length": None}
    assert found.data["errors"] == 0


def test_a_mapping_per_row(file: Path) -> None:
    found = measured(f"{file}:several", ["a", "b", "c", "a"])
    assert {name: one.value for name, one in found.figures.items()} == {
        "metric/same": 0.5,
        "metric/rare": 0.5,
    }
    assert len(found.figures["metric/rare"]) == 4, "the rows stay aligned"


def test_errors_of_a_row_are_counted_and_named(file: Path) -> None:
    found = measured(f"{file}:length", ["a", "boom", "nan", "text", "exit", "abc"])
    assert found.figures["metric/length"].value == (2 + 6) / 2
    assert found.data["errors"] == 4
    assert found.data["first_errors"] == [
        {"row": "x.jsonl:2", "error": "ValueError: no way"},
        {"row": "x.jsonl:3", "error": "ValueError: it returned nan"},
        {"row": "x.jsonl:4", "error": "ValueError: it returned str, not a number"},
        {"row": "x.jsonl:5", "error": "SystemExit: 3"},
    ]
    (note,) = found.notes
    assert note.startswith("metric: 4 answers are left out")
    with pytest.raises(DataError, match=r"scored none of 2 rows; the first: x\.jsonl:1: ValueError: no way"):
        measured(f"{file}:length", ["boom", "boom"])


def test_stdout_is_for_results(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured(f"{file}:chatty", ["a", "b"])
    assert capsys.readouterr() == ("", "chatty\n" * 2)
    with pytest.raises(DataError, match="returned 150 different names"):
        measured(f"{file}:chatty", [str(at) for at in range(150)])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "has no function nothing; its functions are length, several, chatty, wrong"),
        ("FACTOR", "has no function FACTOR"),
        ("wrong", r"wrong cannot be called with \(answer, reference, row\)"),
    ],
)
def test_what_cannot_be_called(file: Path, function: str, message: str) -> None:
    with pytest.raises(TailorError, match=message):
        load(f"{file}:{function}", "tasks[0].function")


@pytest.mark.parametrize("code", ["1 +", "import no_such_module", "raise SystemExit(0)"])
def test_a_file_that_cannot_be_loaded(tmp_path: Path, code: str) -> None:
    (tmp_path / "bad.py").write_text(code)
    with pytest.raises(TailorError, match=r"tasks\[0\]\.function: .*bad\.py cannot be loaded: \w+"):
        load(f"{tmp_path / 'bad.py'}:x", "tasks[0].function")
