"""The exact error messages of recipes. `pytest tests/spec --update-fixtures` updates them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tailor.errors import RecipeError
from tailor.spec.load import load_recipe

FIXTURES = Path(__file__).parent / "fixtures"
"""In folders by subject. File names are unique, because all are copied into one folder and may extend each other."""
RECIPES = sorted(FIXTURES.rglob("*.yaml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fixtures, a model, rows and a template."""
    root = tmp_path_factory.mktemp("recipes")
    for recipe in RECIPES:
        shutil.copy(recipe, root)
    shutil.copy(FIXTURES / "scale" / "zero.json", root)
    for name in (
        "base/config.json",
        "run/adapter/config.json",
        "run/adapter/adapter_config.json",
        "models/tiny/config.json",
        "embedder/model/embedding.json",
        "rows/train.jsonl",
        "templates/own.jinja",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")
    return root


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(FIXTURES).with_suffix("")))
def test_text(
    recipe: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", "/home/nobody-lives-here")
    try:
        load_recipe(recipe.name)
        text = "ok\n"
    except RecipeError as error:
        text = f"{error}\n".replace(str(folder), "CWD")
    expected = recipe.with_suffix(".expected.txt")
    if request.config.getoption("--update-fixtures"):
        expected.write_text(text)
    assert text == expected.read_text()


def test_every_expected_text_has_a_recipe() -> None:
    texts = {path.name.removesuffix(".expected.txt") for path in FIXTURES.rglob("*.expected.txt")}
    assert texts == {path.stem for path in RECIPES}
    assert len(texts) == len(RECIPES)


def test_problems_are_unique_and_in_file_order() -> None:
    for expected in FIXTURES.rglob("*.expected.txt"):
        positions = []
        for line in expected.read_text().splitlines():
            if line.startswith(expected.name.removesuffix(".expected.txt") + ".yaml:"):
                _, row, column, key = line.split(":", 3)
                if row.isdecimal():
                    positions.append((int(row), int(column), key.split(":")[0]))
        assert positions == sorted(set(positions)), expected.name
