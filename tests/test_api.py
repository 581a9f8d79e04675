"""The Python interface: light to import, the command line's errors, and a run from load to evaluation."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import tailor
from tailor.printable import printable
from tests.helpers.evaluations import make_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recipe(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def run(recipe: Path) -> tailor.Run:
    return tailor.load(recipe, {"optim.learning_rate": 5e-3}).run()


def test_importing_and_loading_is_light(recipe: Path) -> None:
    heavy = ("torch", "ray", "transformers", "peft", "datasets", "numpy", "pyarrow", "rich")
    code = (
        f"import sys, json, tailor; before = list(sys.modules); tailor.load({str(recipe)!r});"
        f"print(json.dumps([[m for m in {heavy!r} if m in some] for some in (before, sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], []]
    control = subprocess.run(
        [sys.executable, "-c", code.replace("import sys,", "import sys, numpy,")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(control.stdout)[0] == ["numpy"], "the control"


def test_overrides_of_every_kind(recipe: Path) -> None:
    loaded = tailor.load(
        recipe,
        {
            "optim.learning_rate": 1e-5,
            "model.adapter.target_modules": ["q_proj"],
            "save.to": Path("runs/2e-4"),
            "data.template": "chatml",
            "evaluate.every": None,
            "evaluate.final": {"tasks": [{"name": "f1"}]},
        },
    )
    assert loaded.spec.optim.learning_rate == 1e-5
    assert loaded.spec.save.to == "runs/2e-4"
    assert loaded.spec.evaluate.final is not None
    assert "learning_rate: 1.0e-05" in loaded.yaml()


@pytest.mark.parametrize("text", ["runs/🧵", "a\\ud83d\\ude00", "\\🧵\\", "tab\t\x7f\x85\u2028", "\ufeff𝕏"])
def test_overrides_keep_every_character(recipe: Path, text: str) -> None:
    loaded = tailor.load(recipe, {"optim.learning_rate": 1e-5, "model.adapter.target_modules": [text]})
    assert loaded.spec.model.adapter is not None
    assert loaded.spec.model.adapter.target_modules == [text]


def test_errors_are_those_of_the_command_line(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(tailor.TailorError) as caught:
        tailor.load(recipe, {"optim.learning_rat": 1e-4})
    assert str(caught.value) == ("command line: optim.learning_rat: unknown key; did you mean learning_rate?")
    with pytest.raises(tailor.TailorError, match=f"no run at {tmp_path}: it has no recipe.yaml"):
        tailor.Run(tmp_path)
    with pytest.raises(AttributeError, match="module 'tailor' has no attribute 'lod'"):
        tailor.lod  # type: ignore[attr-defined]  # noqa: B018


def test_metrics_of_a_run(run: tailor.Run, recipe: Path) -> None:
    assert run.status == "finished"
    assert run.path == str(recipe.parent / "runs" / "tiny")
    assert run.artifact == f"{run.path}/adapter"
    columns = run.columns("train")
    assert columns["step"] == [1, 2, 3, 4]
    assert columns["loss"] == [record["loss"] for record in run.metrics if record["kind"] == "train"]
    assert run.summary()["State"] == "finished, step 4 of 4"
    assert run.recipe().spec.optim.learning_rate == 5e-3
    assert repr(run) == f"Run('{run.path}', finished)"


def test_it_generates_as_the_command_does(run: tailor.Run, capsys: pytest.CaptureFixture[str]) -> None:
    from tailor.cli.main import main

    answers = run.generate(["7?", "8?"], max_new_tokens=6)
    assert main(["generate", run.path, "--prompt", "7?", "--prompt", "8?", "--max-new-tokens", "6"]) == 0
    assert capsys.readouterr().out == "".join(f"{printable(answer, lines=True)}\n" for answer in answers)
    assert run.generate("7?", max_new_tokens=6) == answers[:1]
    with pytest.raises(tailor.TailorError, match="prompts must be non-empty strings"):
        run.generate([""])
    run.unload()


def test_it_evaluates(run: tailor.Run) -> None:
    found = run.evaluate(
        {"tasks": [{"name": "f1"}, {"name": "perplexity"}]}, {"limit": 3, "decoding.max_new_tokens": 4}
    )
    assert set(found.figures) == {"f1", "loss", "perplexity", "token_accuracy"}
    assert found.of("base")["loss"] != found.figures["loss"]
    assert len(found.rows()) == 3
    assert found.rows("facts") == []
    assert run.evaluations["default"].figures == found.figures
    with pytest.raises(tailor.TailorError, match="fail_if says") as caught:
        run.evaluate({"tasks": [{"name": "perplexity"}], "fail_if": {"loss": "> 0"}, "limit": 3})
    assert caught.value.exit_code == 3


def test_a_run_in_another_thread_leaves_signals_alone(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a notebook's kernel may do it: no handler is set, and what is printed are plain lines."""
    import signal

    before = signal.getsignal(signal.SIGINT)
    ended: list[str] = []

    def work() -> None:
        loaded = tailor.load(recipe, {"save.to": tmp_path / "runs" / "thread", "train.steps": 1})
        ended.append(loaded.run().status)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == ["finished"]
    assert signal.getsignal(signal.SIGINT) is before
    out = capsys.readouterr().out
    assert "step 1/1" in out
    assert "\x1b" not in out
