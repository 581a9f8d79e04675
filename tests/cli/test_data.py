"""`tailor data`: the report and the preview, as text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tailor.cli.main import main
from tests.helpers.models import byte_tokenizer


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    byte_tokenizer(Path("model"))
    Path("model/config.json").write_text("{}")
    rows = [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(40)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    Path("rows.jsonl").write_text(
        text + "{broken\n" + json.dumps({"prompt": "x" * 90, "completion": "y"}) + "\n"
    )
    Path("recipe.yaml").write_text(
        "model: {path: model}\ndata:\n  train: [{path: rows.jsonl}]\n  max_length: 64\n  budget: {unreadable: 0.1}\n"
        "method: {name: sft}\noptim: {learning_rate: 1e-3}\nsave: {to: runs/one}\n"
    )
    return "recipe.yaml"


def test_report(recipe, capsys):
    assert main(["data", "report", recipe]) == 0
    text = capsys.readouterr().out
    for line in (
        "data.train[0] rows.jsonl",
        "  format        completion (detected)",
        "  rows          42 read, 40 kept",
        "  unreadable    1 bad_json",
        "                rows.jsonl:41 not valid JSON",
        "  dropped       1 too_long",
        "                rows.jsonl:42 92 tokens; data.max_length is 64",
        "train: 40 examples",
        "####",
    ):
        assert line in text
    assert "(prepared before)" not in text
    assert main(["data", "report", recipe]) == 0
    assert "(prepared before)" in capsys.readouterr().out


def test_report_over_budget_shows_everything_and_refuses(recipe, capsys):
    assert main(["data", "report", recipe, "data.budget.unreadable=0"]) == 2
    shown = capsys.readouterr()
    assert "unreadable    1 bad_json" in shown.out
    assert (
        "tailor: data.train[0] rows.jsonl: 1 of 42 rows cannot be read, but data.budget.unreadable allows none"
        in shown.err
    )
    assert "hint: fix these rows, or set data.budget.unreadable: 0.024 to allow it" in shown.err


def test_preview(recipe, capsys, monkeypatch):
    assert main(["data", "preview", recipe, "--rows", "1", "data.max_length=128"]) == 0
    text = capsys.readouterr().out
    assert "rows.jsonl:1  10 tokens, 3 supervised\n0 + 1 =« 1</s>»\n" in text
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["data", "preview", recipe, "--rows", "1"]) == 0
    assert "\x1b[32m 1\x1b[0m\x1b[7;32m</s>\x1b[0m" in capsys.readouterr().out


def test_report_says_that_nothing_was_held_out(recipe, capsys):
    assert main(["data", "report", recipe, "data.holdout=0.0001"]) == 0
    assert (
        "data.holdout: 0.0001 selects no evaluation row from 40 rows; raise data.holdout\n"
        in capsys.readouterr().out
    )
    assert main(["data", "report", recipe, "data.holdout=0.5"]) == 0
    assert "selects no evaluation row" not in capsys.readouterr().out


def test_narrow_lengths_have_one_bin_each(recipe, capsys):
    assert main(["data", "report", recipe]) == 0
    bins = re.findall(r"^  +(\d+) to +(\d+)  (#*) +(\d+)$", capsys.readouterr().out, re.MULTILINE)
    assert [low for low, _, _, _ in bins] == [high for _, high, _, _ in bins]
    assert len({low for low, _, _, _ in bins}) == len(bins)
    assert sum(int(count) for _, _, _, count in bins) == 40


def test_an_unwritable_store_is_named(recipe, capsys):
    assert main(["data", "report", recipe, "data.store=/proc/tok"]) == 2
    told = capsys.readouterr().err
    assert "tailor: /proc/tok cannot be written: the folder cannot be created" in told
    assert "hint: set data.store (or save.to) to a writable folder" in told


def test_report_shows_the_end_of_turn_as_text(recipe, capsys):
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    Path("rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert main(["data", "report", recipe, "data.template=chatml", "data.max_length=256"]) == 0
    assert "chat template   chatml, end of turn <|im_end|>\n" in capsys.readouterr().out
