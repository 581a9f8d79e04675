"""Activation beacons as a user meets them: plan, run, generate, chat, evaluate, export."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

import tailor
from tailor.cli.main import main
from tailor.errors import ModelError
from tailor.evaluate.models import find_model
from tailor.evaluate.tasks.base import make_evaluators
from tailor.spec.suite import Suite
from tests.helpers.models import tiny_llama

RECIPE = """\
model:
  path: base
  beacon: {window: 64, ratios: [4, 8]}
data: {train: [{path: rows.jsonl}], holdout: 0.2, max_length: 400, pack: false}
method: {name: sft}
optim: {learning_rate: 0.003}
train: {steps: 3, batch_size: 2, precision: fp32}
evaluate: {generation: {limit: 3, max_new_tokens: 4}}
save: {to: runs/tiny}
"""
QUESTION = "Tell me of the coat that hangs behind the door, please. " * 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_llama(folder / "base", max_position_embeddings=256)
    with (folder / "rows.jsonl").open("w") as file:
        for i in range(40):
            turns = [
                {"role": "user", "content": f"{i}? {QUESTION}"},
                {"role": "assistant", "content": f"It is {i % 3}."},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tailor.load("recipe.yaml").run()
    return folder


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_the_plan_shows_the_windows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipe.yaml", "save.to=runs/other"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"^method +sft, beacons with copies of the projections, 12,352 of [0-9,]+ parameters trained$",
        out,
        re.M,
    ), out
    assert re.search(
        r"^windows +a row of 2\d\d tokens has 4 windows of 64; 24 to 48 keys per layer stay in memory \(ratio 4 in evaluation\)$",
        out,
        re.M,
    ), out
    assert (
        main(["plan", "recipe.yaml", "model.beacon.window=512", "data.max_length=600", "save.to=runs/o"]) == 2
    )
    assert (
        "a window of 512 tokens with its beacons and a second one exceed the 256 positions"
        in capsys.readouterr().err
    )


def test_it_answers_long_prompts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    long = "The coat. " * 60  # 600 tokens for a model of 256 positions
    assert main(["generate", "runs/tiny", "--prompt", long, "--prompt", "Hi", "--max-new-tokens", "70"]) == 0
    assert capsys.readouterr().out.count("\n") >= 2
    assert (
        main(["generate", "base", "--prompt", long, "--max-new-tokens", "4"]) == 2
    )  # control: the base cannot
    assert "the model has 256 positions" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n/quit\n"))
    assert main(["chat", "runs/tiny", "--base", "--max-new-tokens", "5"]) == 0
    out = capsys.readouterr().out
    assert "base   " in out
    assert "tuned  " in out


def test_it_is_evaluated_beside_the_base(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "runs/tiny", "decoding.max_new_tokens=4", "limit=3"]) == 0
    out = capsys.readouterr().out
    number = r"[+-]?[\d.]+ \[[+-]?[\d.]+, [+-]?[\d.]+\]"
    found = re.search(rf"^perplexity +({number}) +({number}) +{number} p=[01]\.\d+ +3$", out, re.MULTILINE)
    assert found, out
    assert found[1] != found[2]
    assert re.search(r"^beacons +tiny: ratio \d: \d+ sequences of at most \d+ tokens", out, re.MULTILINE), out
    assert main(["show", "runs/tiny"]) == 0
    assert "sft, activation beacons" in capsys.readouterr().out


def test_lm_eval_is_refused_since_it_would_leave_beacons_out() -> None:
    model = find_model("runs/tiny")
    suite = Suite.model_validate({"tasks": [{"name": "lm_eval", "tasks": ["arc_easy"]}]})
    with pytest.raises(ModelError, match="has activation beacons, which lm-eval ignores"):
        make_evaluators(suite.tasks)[0].check_model(model)
    make_evaluators(suite.tasks)[0].check_model(find_model("base"))  # control


def test_what_needs_a_plain_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "runs/tiny"]) == 2
    shown = capsys.readouterr().err
    assert re.search(
        r"runs/tiny/beacon has activation beacons, which cannot be merged: they do not change the base", shown
    )
    assert main(["export", "runs/tiny", "--to", "out"]) == 2
    assert "cannot be exported: no other tool can load them" in capsys.readouterr().err
    assert main(["average", "runs/tiny", "runs/tiny", "--to", "out"]) == 2
    assert "cannot be averaged" in capsys.readouterr().err
    (Path("runs/tiny/beacon/base.json")).rename("base.json")
    try:
        assert main(["generate", "runs/tiny", "--prompt", "Hi"]) == 2
    finally:
        Path("base.json").rename("runs/tiny/beacon/base.json")
    assert "base.json" in capsys.readouterr().err
