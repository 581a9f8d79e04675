from __future__ import annotations

from pathlib import Path

import pytest

from tailor.cli.main import main
from tailor.spec.load import load_recipe
from tailor.spec.rules.files import templates


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows: mine.jsonl").write_text("{}")
    return tmp_path


def test_the_first_recipe_is_good(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--model", "org/base", "--data", "rows: mine.jsonl"]) == 0
    recipe = load_recipe("recipe.yaml")
    assert recipe.model.path == "org/base"
    assert recipe.data.train[0].path == "rows: mine.jsonl"
    assert recipe.evaluate.final is not None
    assert [task.name for task in recipe.evaluate.final.tasks] == ["forgetting"]
    capsys.readouterr()
    assert main(["validate", "recipe.yaml"]) == 0
    assert capsys.readouterr().out == "recipe.yaml: ok\n"


def test_what_is_commented_out_is_good_too(place: Path) -> None:
    main(["init", "--model", "org/base", "--data", "hf://org/rows"])
    text = Path("recipe.yaml").read_text()
    for line in ("# quantize:", "#   type: nf4", "# columns:", "# template:"):
        assert line in text
        text = text.replace(line, line.removeprefix("# ") if not line.startswith("#  ") else line[2:])
    Path("recipe.yaml").write_text(text)
    recipe = load_recipe("recipe.yaml")
    assert recipe.model.quantize is not None
    assert recipe.data.template == "chatml"
    assert recipe.data.train[0].columns


def test_the_default_recipe_has_placeholders(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", "new/folder/mine.yaml"])
    assert main(["validate", "new/folder/mine.yaml"]) == 2
    keys = [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()]
    assert keys == ["model.path", "data.train.0.path"]


def test_nothing_is_overwritten(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text("mine")
    assert main(["init"]) == 2
    assert capsys.readouterr().err == (
        "tailor: recipe.yaml exists already\n  hint: name another file, or remove it\n"
    )
    assert Path("recipe.yaml").read_text() == "mine"


def test_a_folder_that_cannot_be_made(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert main(["init", "file/recipe.yaml"]) == 2
    assert "tailor: file/recipe.yaml cannot be written: " in capsys.readouterr().err


def test_templates(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--templates"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert sorted(names) == sorted(templates())
    assert "chatml" in names
