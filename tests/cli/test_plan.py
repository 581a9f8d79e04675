"""`tailor plan` for this machine and for others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tailor.cli.main import main
from tests.helpers.models import tiny_llama

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


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main(["plan", "recipe.yaml", "--json", *words]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
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
