"""`tailor plan` for this machine and for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tailor.cli.main import main
from tests.helpers.models import tiny_llama, with_own_code

RECIPE = """\
model: {path: base, adapter: {rank: 4}}
data: {train: [{path: rows.jsonl}], max_length: 4096}
method: {name: sft}
optim: {learning_rate: 0.001}
train: {steps: 4, batch_size: 8}
save: {to: runs/x}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_llama(tmp_path / "base", max_position_embeddings=8192)
    rows = [{"prompt": f"{number}?", "response": "yes " * 5} for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["plan", "recipe.yaml", "--json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_forecast_is_that_of_the_data_not_of_the_maximum_length(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = planned(capsys)
    assert here["row_length"] == here["tokens_per_epoch"]  # all rows fit into one, of 4,096 tokens at most
    assert here["row_length"] < 4096  # type: ignore[operator]
    assert "what_if" not in here
    memory = here["memory"]
    long = planned(capsys, "data.train.0.weight=100")
    assert long["row_length"] == 4096
    assert memory["activations"] < 0.7 * long["memory"]["activations"]  # type: ignore[index]


def test_a_machine_that_is_not_here(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--device", "h100-80", "--workers", "2", "--price", "3")
    assert (found["gpu"], found["workers"], found["precision"]) == (True, 2, "bf16")
    what_if = found["what_if"]
    assert isinstance(what_if, dict)
    assert (what_if["device"], what_if["workers"], what_if["fits"], what_if["change"]) == (
        "h100-80",
        2,
        True,
        None,
    )
    assert what_if["length"] == 8192
    hours = what_if["duration"]["seconds"] / 3600
    assert what_if["price"] == pytest.approx(hours * 2 * 3)
    alone = planned(capsys, "--device", "cpu-24", "--workers", "4", "--price", "3")["what_if"]
    assert isinstance(alone, dict)
    assert alone["price"] == pytest.approx(alone["duration"]["seconds"] / 3600 * 3), "one machine"
    assert main(["plan", "recipe.yaml", "--device", "b200", "--price", "1.5"]) == 0
    shown = capsys.readouterr().out
    for expected in (
        "1 × b200 with 178.4 GiB per worker",
        "one row of 8,192 tokens, the model's maximum",
        "price",
    ):
        assert expected in shown


def test_parameters_are_counted_and_their_groups_listed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("optim.weight_decay=0.1", "optim.learning_rate_ratios.lora_b=16")
    found: dict[str, Any] = planned(capsys, *words)
    trained = 2 * 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    assert (found["trained_parameters"], found["parameters_estimated"]) == (trained, None)
    groups = found["parameter_groups"]
    assert [(group["weight_decay"], group["learning_rate"]) for group in groups] == [
        (0.1, 1e-3),
        (0.1, 0.016),
    ]
    assert [[kind["name"] for kind in group["kinds"]] for group in groups] == [["lora_A"], ["lora_B"]]
    assert sum(group["parameters"] for group in groups) == trained
    assert main(["plan", "recipe.yaml", "model.adapter=null", *words[:1]]) == 0
    shown = capsys.readouterr().out
    assert f"all weights, {found['total_parameters']:,} of {found['total_parameters']:,} parameters" in shown
    assert "weight decay  0.1 on Embedding.weight, Linear.weight; 0 on LlamaRMSNorm.weight\n" in shown


def test_a_model_that_is_not_built_is_estimated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exact = planned(capsys)
    with_own_code(folder / "base")
    assert main(["plan", "recipe.yaml"]) == 0
    shown = capsys.readouterr().out
    assert f"about {exact['trained_parameters']:,} of " in shown
    why = "the model comes with its own code, and model.trust_remote_code is false"
    assert f"estimate      numbers of parameters, from config.json: {why}\n" in shown
    assert planned(capsys)["parameters_estimated"] == why
    trusted = planned(capsys, "model.trust_remote_code=true")
    assert (trusted["parameters_estimated"], trusted["total_parameters"]) == (None, exact["total_parameters"])


def test_the_dropout_of_the_base_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((folder / "base/config.json").read_text())
    (folder / "base/config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}))
    assert main(["plan", "recipe.yaml"]) == 0
    line = "dropout       of the base: attention_dropout 0.1; model.base_dropout: 0 turns it off\n"
    assert line in capsys.readouterr().out
    assert main(["plan", "recipe.yaml", "model.base_dropout=0"]) == 0
    assert "of the base" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["plan", "run"])
def test_unknown_modules_are_found_before_the_data_is_prepared(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main([command, "recipe.yaml", "model.adapter.target_modules=[qproj]"]) == 2
    error = capsys.readouterr().err
    assert (
        "model.adapter.target_modules names qproj, but LlamaForCausalLM has no module of that name" in error
    )
    assert "hint: did you mean q_proj?" in error
    assert not list(folder.rglob("tokens"))
    assert main(["plan", "recipe.yaml", "model.adapter.target_modules=[q_proj]"]) == 0
    assert list(folder.rglob("tokens")), "the control"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--workers", "2"), "--workers needs --device"),
        (("--price", "2"), "--price needs --device"),
        (("--device", "h300"), "--device h300: unknown device"),
        (("--device", "h200", "scale.gpu=false"), "scale.gpu is false, but h200 is a GPU"),
        (("--device", "cpu-8", "scale.gpu=true"), "scale.gpu is true, but there is no GPU"),
        (("--device", "h200", "--workers", "2", "scale.workers=3"), "scale.workers: given twice"),
    ],
)
def test_mistakes(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert main(["plan", "recipe.yaml", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
