"""`tailor data doctor`: text, JSON and the HTML page, with texts of rows that try to leave them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tailor.cli.main import main
from tests.helpers.models import byte_tokenizer

HOSTILE = "Is <script>alert(1)</script> & \x1b]0;title\x07 \u202edrawkcab OK?"
KEYS = "model: {path: model}\nmethod: {name: sft}\noptim: {learning_rate: 1e-3}\nsave: {to: runs/one}\n"


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    byte_tokenizer(Path("model"))
    Path("model/config.json").write_text("{}")
    rows = [talk(f"What is {n} + {n}?", f"{2 * n}.") for n in range(30)]
    rows += [rows[3]] * 7 + [talk(HOSTILE, "No.")]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("tests.jsonl").write_text(json.dumps({"question": "What is 5 + 5?"}) + "\n")
    Path("recipe.yaml").write_text(KEYS + "data:\n  train: [{path: rows.jsonl}]\n")
    return "recipe.yaml"


def test_text(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "doctor", recipe, "--benchmark", "tests.jsonl"]) == 0
    text = capsys.readouterr().out
    assert "warning  duplicates (7): training rows that are equal to an earlier one\n" in text
    assert "         rows.jsonl:31  repeats rows.jsonl:4\n" in text
    assert "         and 2 more\n" in text
    assert "         recipe:\n           data:\n             deduplicate: exact\n" in text
    assert "error    benchmark_leakage (1): training rows that contain a text of a benchmark\n" in text
    assert "rows.jsonl:6  contains 100% of tests.jsonl:1\n" in text
    assert text.endswith("recipe.yaml: 38 rows, 1 error, 2 warnings, 0 notes\n")
    assert r"\x1b]0;title\x07 \u202edrawkcab" in text
    assert "".join(text.split("\n")).isprintable()


def test_json(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "doctor", recipe, "--json"]) == 0
    text = capsys.readouterr().out
    assert "".join(text.split("\n")).isprintable()
    printed = json.loads(text)
    assert (printed["rows"], printed["error"], printed["warning"], printed["info"]) == (38, 0, 2, 0)
    duplicates, control = printed["findings"]
    assert (duplicates["check"], duplicates["count"], len(duplicates["rows"])) == ("duplicates", 7, 7)
    assert control["check"] == "control_characters"
    assert control["rows"][0]["row"] == "rows.jsonl:38"


def test_page(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "doctor", recipe, "--html", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; \\x1b]0;title\\x07 \\u202edrawkcab" in page
    assert "".join(page.split("\n")).isprintable()
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    for text in (
        "Data doctor: recipe.yaml",
        "38 rows: 0 errors, 2 warnings, 0 notes",
        "deduplicate: exact",
        "rows.jsonl:31",
    ):
        assert text in page
    assert "duplicates" in capsys.readouterr().out


def test_the_lines_of_a_fix_are_a_recipe(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Adding them leaves no duplicate."""
    assert main(["data", "doctor", recipe, "data.deduplicate=exact", "--json"]) == 0
    findings = {one["check"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert (findings["duplicates"]["severity"], findings["duplicates"]["fix"]) == ("info", "")
    assert main(["data", "report", recipe, "data.deduplicate=exact"]) == 0
    text = capsys.readouterr().out
    assert "  rows          38 read, 31 kept\n" in text
    assert "  removed       7 duplicate\n" in text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["--html", "no/such/page.html"],
            "tailor: no/such/page.html cannot be written: no such file or directory",
        ),
        (["--benchmark", "none.jsonl"], "none.jsonl: does not exist"),
        (["data.train.0.path=none.jsonl"], "data.train.0.path: no such file or folder: none.jsonl"),
        (["data.deduplicate=fuzzy"], "data.deduplicate"),
    ],
)
def test_mistakes(recipe: str, capsys: pytest.CaptureFixture[str], arguments: list[str], error: str) -> None:
    assert main(["data", "doctor", recipe, *arguments]) == 2
    assert error in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "option", "owner"),
    [
        ("report", ["--html", "page.html"], "doctor"),
        ("preview", ["--benchmark", "own.jsonl"], "doctor"),
        ("doctor", ["--split", "train"], "preview"),
        ("report", ["--rows", "3"], "preview"),
    ],
)
def test_an_option_of_another_command_is_refused(
    recipe: str, capsys: pytest.CaptureFixture[str], what: str, option: list[str], owner: str
) -> None:
    assert main(["data", what, recipe, *option]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"tailor: `tailor data {what}` has no option {option[0]}\n"
        f"  hint: remove it; it is an option of `tailor data {owner}`\n"
    )
