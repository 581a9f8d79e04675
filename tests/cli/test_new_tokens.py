"""`model.add_tokens` in the commands: the data, the plan, a run, its evaluation beside the base, and another list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tailor.cli.main import main
from tailor.runs import resume
from tailor.spec.load import load_recipe
from tests.helpers.models import tiny_llama

RECIPE = """\
model: {path: base, adapter: {rank: 4}, add_tokens: [<tool>, naïve]}
data: {train: [{path: rows.jsonl}], holdout: 0.2, max_length: 64}
method: {name: sft}
optim: {learning_rate: 0.003}
train: {steps: 2, batch_size: 2, precision: fp32}
save: {to: runs/one}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_llama(folder / "base", num_hidden_layers=1)
    rows = [{"prompt": f"<tool>{n}", "response": f" naïve {n} <tool>"} for n in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def document(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_data_has_the_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    pieces = document(capsys, "data", "preview", "recipe.yaml", "--rows", "1")["rows"][0]["examples"][0]
    assert [piece["supervised"] for piece in pieces if piece["text"] == "<tool>"] == [False, True]
    assert [piece["special"] for piece in pieces if piece["text"] == "naïve"] == [True]
    with_tokens = document(capsys, "data", "report", "recipe.yaml")
    without = document(capsys, "data", "report", "recipe.yaml", "model.add_tokens=[]")
    other = document(capsys, "data", "report", "recipe.yaml", "model.add_tokens=[naïve, <tool>]")
    assert without["train"]["tokens"] > with_tokens["train"]["tokens"] == other["train"]["tokens"]
    assert len({report["tokens"] for report in (with_tokens, without, other)}) == 3


def test_the_plan_counts_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    plans = [document(capsys, "plan", "recipe.yaml", *more) for more in ((), ("model.add_tokens=[]",))]
    assert plans[0]["trained_parameters"] - plans[1]["trained_parameters"] == 2 * 2 * 64
    assert plans[0]["memory"]["logits"] > plans[1]["memory"]["logits"]


def test_a_run_is_evaluated_beside_its_base_and_keeps_its_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "recipe.yaml"]) == 0
    capsys.readouterr()
    results = document(capsys, "evaluate", "runs/one", "limit=2", "decoding.max_new_tokens=2")["results"]
    assert set(results["models"]) == {"one", "base"}
    for change in ("[naïve, <tool>]", "[<tool>]", "[]"):
        assert main(["run", "recipe.yaml", f"model.add_tokens={change}"]) == 2
        assert "model.add_tokens" in capsys.readouterr().err
    recipe = load_recipe("recipe.yaml", ["model.add_tokens=[<tool>]"])
    assert [key for key, _, _ in resume.differences(load_recipe("recipe.yaml"), recipe)] == [
        "model.add_tokens"
    ]


def test_a_token_that_exists_is_refused_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipe.yaml", "model.add_tokens=['<|im_end|>']"]) == 2
    out = capsys.readouterr().err
    assert "model.add_tokens: '<|im_end|>' is already a token of" in out
    assert "hint: remove it from the list" in out
