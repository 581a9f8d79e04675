from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tailor.cli.main import main
from tests.spec.helpers import GOOD, write


def test_many_files_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, name="good.yaml")
    write(tmp_path, GOOD.replace("2e-4", "-1"), name="bad.yaml")
    assert main(["validate", "bad.yaml", "good.yaml", "none.yaml"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "good.yaml: ok\n"
    assert printed.err == (
        "bad.yaml:5:24: optim.learning_rate: -1 is not a number over 0\nnone.yaml: no such file\n"
    )
    assert main(["validate", "good.yaml"]) == 0


def test_overrides_hold_for_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, GOOD.replace("2e-4", "-1"), name="bad.yaml")
    assert main(["validate", "bad.yaml", "optim.learning_rate=1e-4"]) == 0
    assert main(["validate", "bad.yaml", "optim.learning_rate=-2"]) == 2
    assert main(["validate", "optim.learning_rate=-2"]) == 2
    assert capsys.readouterr().err == (
        "command line: optim.learning_rate: -2 is not a number over 0\n"
        "tailor: no recipe file was given, only overrides\n"
    )


CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 4096,
}
BEACON = "model.beacon={window: 1024}"


def longrope(short: int, long: int = 8) -> tuple[str, ...]:
    lists = f"short_factor: {[1.0] * short}, long_factor: {[1.0] * long}"
    rope = f"model.rope={{name: longrope, length: 8192, original_length: 4096, {lists}}}"
    return rope, "data.pack=false", "train.micro_batch_size=1"


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ({}, longrope(8), ""),
        ({"head_dim": 32}, longrope(16, 16), ""),
        ({"head_dim": 32}, longrope(8), "short_factor has 8 numbers, but model has 16 RoPE frequencies"),
        ({"partial_rotary_factor": 0.5}, longrope(4, 4), ""),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, longrope(8), "model has 4 RoPE frequencies"),
        ({"text_config": {"head_dim": 64}}, longrope(8), "model has 32 RoPE frequencies"),
        ({"original_max_position_embeddings": 2048}, longrope(8), "is 4096, but the original maximum"),
        ({"model_type": "gpt2"}, longrope(8), "(gpt2) has no rotary position embeddings"),
        ({}, ("scale.sequence_parallel=3", "scale.workers=3"), "the 4 attention heads of model are not"),
        ({}, ("scale.sequence_parallel=2", "scale.workers=2"), ""),
        (
            {},
            ("method={name: pretrain}", "data.max_length=8192"),
            "makes rows of 8192 tokens, but model supports 4096",
        ),
        ({}, ("method={name: pretrain}", "data.max_length=4096"), ""),
        ({}, ("data.max_length=8192",), ""),  # rows may be shorter
        ({}, (BEACON, "data.pack=false", "data.max_length=20000"), ""),
        (
            {"max_position_embeddings": 1050},
            (BEACON, "data.pack=false"),
            "exceed the 1050 positions of model",
        ),
        ({"num_attention_heads": "four"}, (), "the config.json of model has a value that makes no model"),
        ({"num_hidden_layers": 0}, (), "a value that makes no model: 0 layers of size"),
        ({"hidden_size": -1}, (), "a value that makes no model: 2 layers of size -1"),
    ],
)
def test_the_config_of_a_local_model_is_checked(
    config: dict[str, Any],
    overrides: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, GOOD, name="recipe.yaml")
    Path("model").mkdir()
    Path("model/config.json").write_text(json.dumps(CONFIG | config))
    code = main(["validate", "recipe.yaml", "model.path=model", *overrides])
    printed = capsys.readouterr()
    assert code == (2 if message else 0), printed.err
    assert message in printed.err
    assert ("hint:" in printed.err) == bool(message)


def test_a_model_that_is_not_here_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hub model's config is read from the cache only."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    write(tmp_path, GOOD, name="recipe.yaml")
    arguments = [
        "validate",
        "recipe.yaml",
        "model.path=org/model",
        "scale.sequence_parallel=3",
        "scale.workers=3",
    ]
    assert main(arguments) == 0
    snapshot = tmp_path / "cache" / "models--org--model" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123")
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    assert main(arguments) == 2
    assert "the 4 attention heads of org/model are not divisible" in capsys.readouterr().err


def test_a_longer_context_without_a_measured_regression_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, name="recipe.yaml")
    rope = "model.rope={name: theta, theta: 2e8, length: 81920}"
    adapter = "model.adapter={}"
    assert main(["validate", "recipe.yaml", rope, adapter, "--json"]) == 0
    (note,) = json.loads(capsys.readouterr().out)["recipes"][0]["notes"]
    assert note.endswith(
        "hint: add {name: forgetting} in evaluate.final.tasks and evaluate.final.compare: [unscaled_base]"
    )
    assert main(["validate", "recipe.yaml", rope, adapter]) == 0
    assert capsys.readouterr().out == f"recipe.yaml: ok\nrecipe.yaml: note: {note}\n"
    final = "evaluate.final={tasks: [{name: forgetting}], compare: [unscaled_base]}"
    assert main(["validate", "recipe.yaml", rope, adapter, final]) == 0
    assert capsys.readouterr().out == "recipe.yaml: ok\n"


ROOT = Path(__file__).parents[2]


def test_shipped_recipes_are_valid_in_a_clone_without_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("validate opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(ROOT)
    paths = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    assert len(paths) > 25
    code = main(["validate", *paths])
    printed = capsys.readouterr()
    assert printed.err == ""
    assert code == 0
    assert main(["validate", paths[0], "data.train.0.path=lima.jsonl"]) == 2, "control"


def test_a_run_that_a_recipe_beside_it_makes_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`run` needs it, and says which recipe to run first."""
    monkeypatch.chdir(tmp_path)
    second = GOOD.replace("runs/x", "runs/second")
    write(tmp_path, GOOD.replace("runs/x", "runs/first/"), name="first.yaml")
    write(tmp_path, second, name="second.yaml")
    (tmp_path / "broken.yaml").write_bytes(b"save: [\xff")
    (tmp_path / "list.yaml").write_text("- save\n")
    warm = "model.warm_start=runs/first"
    assert main(["validate", "second.yaml", warm]) == 0
    assert capsys.readouterr().out == "second.yaml: ok; run first.yaml first\n"
    assert main(["validate", "--json", "second.yaml", warm]) == 0
    assert json.loads(capsys.readouterr().out)["recipes"][0]["run_first"] == ["first.yaml"]
    for words in (["plan", "second.yaml", warm], ["run", "second.yaml", warm]):
        assert main(words) == 2
        assert capsys.readouterr().err.endswith("run first.yaml first, which makes it\n")
    for other in ("runs/third", "runs/second", "runs"):  # no recipe makes it, or only this one
        assert main(["validate", "second.yaml", f"model.warm_start={other}"]) == 2
        assert "no such folder" in capsys.readouterr().err
    (tmp_path / "runs" / "first").mkdir(parents=True)
    assert main(["validate", "second.yaml", warm]) == 0
    assert capsys.readouterr().out == "second.yaml: ok\n"
