"""`tailor evaluate` as a user meets it, and `tailor chat` on the same run."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

import tailor
from tailor.cli.main import main
from tests.helpers.evaluations import make_recipe

SHORT = ["decoding.max_new_tokens=4", "limit=3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tailor.load(make_recipe(folder)).run()
    return folder


def test_it_shows_a_table_beside_the_base(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert main(["evaluate", "runs/tiny", *SHORT]) == 0
    out = capsys.readouterr().out
    interval = r"[+-]?[\d.]+ \[[+-]?[\d.]+, [+-]?[\d.]+\]"
    assert re.search(r"^metric +tiny +base +tiny - base +rows$", out, re.MULTILINE)
    for figure in ("loss", "perplexity", "token_accuracy %", "exact_match %", "f1 %"):
        assert re.search(
            rf"^{figure} +{interval} +{interval} +{interval} p=[01]\.\d+ +3$", out, re.MULTILINE
        ), out
    assert "paired bootstrap over rows: 95% percentile interval, 1000 resamples" in out
    assert re.search(r"^rows +3 of \d+$", out, re.MULTILINE)
    assert re.search(r"^results +runs/tiny/evaluation/default$", out, re.MULTILINE)
    assert main(["show", "runs/tiny"]) == 0
    assert "Evaluation default" in capsys.readouterr().out


def test_a_file_and_a_bound(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    Path("own.yaml").write_text("tasks: [{name: f1}]\nfail_if: {f1: '<= 1'}\ncompare: none\n")
    assert main(["evaluate", "runs/tiny", "--with", "own.yaml", "--samples", "1", *SHORT]) == 3
    shown = capsys.readouterr()
    assert re.search(r"^tailor: own: f1 is [\d.]+, and fail_if says <= 1\n", shown.err, re.MULTILINE)
    assert "f1 %" in shown.out
    assert main(["evaluate", "runs/tiny", "--with", "own.yaml", "fail_if.f1=< 0", *SHORT]) == 0


def test_errors_are_reported_before_loading(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert main(["evaluate", "runs/tiny", "decoding.temprature=1"]) == 2
    assert capsys.readouterr().err == (
        "command line: decoding.temprature: unknown key; did you mean temperature?\n"
    )
    assert main(["evaluate", "runs/tinny"]) == 2
    assert capsys.readouterr().err == (
        f"tailor: {place}/runs/tinny does not exist\n  hint: did you mean {place}/runs/tiny?\n"
    )


def talk(
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *options: str,
    model: str = "runs/tiny",
) -> list[str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert main(["chat", model, "--max-new-tokens", "6", *options]) == 0
    return capsys.readouterr().out.splitlines()


def test_base_and_tuned_answer_the_same_prompt(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    alone = talk(["7?", "8?"], monkeypatch, capsys)
    both = talk(["7?", "8?"], monkeypatch, capsys, "--base")
    assert [line.removeprefix("tuned  ") for line in both if line.startswith("tuned  ")] == alone
    base = [line.removeprefix("base   ") for line in both if line.startswith("base   ")]
    assert len(base) == 2
    assert base != alone, "the control: the adapter changes the answers"


def test_the_system_turn_can_be_changed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    (plain,) = talk(["7?"], monkeypatch, capsys, model="base")
    (brief,) = talk(["7?"], monkeypatch, capsys, "--system", "Be brief, and sew.", model="base")
    assert plain != brief
    lines = ["7?", "/system Be brief, and sew.", "7?", "/system", "7?", "/quit", "7?"]
    assert talk(lines, monkeypatch, capsys, model="base") == [plain, brief, plain]
    (refused,) = talk(["/sytem"], monkeypatch, capsys, model="base")
    assert refused.startswith("/sytem: unknown command; /reset starts")


def test_a_whole_model_has_no_base(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert main(["chat", "base", "--base"]) == 2
    assert (
        "base is a full model: there is no adapter to disable, so the answers of its base are not available"
        in capsys.readouterr().err
    )
