"""The JSON schema, the reference, the aliases of other trainers' keys, and the shipped recipes."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from tailor.spec.load import load_recipe
from tailor.spec.moving.page import page
from tailor.spec.reading import schema_tree
from tailor.spec.reading.json_schema import schema, schema_text
from tailor.spec.reading.reference import reference
from tailor.spec.reading.source import dotted, parse
from tailor.spec.recipe import Recipe
from tailor.spec.trainers import common
from tests.spec.helpers import GOOD

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def test_committed_schema_is_current() -> None:
    assert (ROOT / "recipes" / "schema.json").read_text() == schema_text(), "run `make docs`"


def test_committed_reference_is_current() -> None:
    assert (ROOT / "docs" / "recipe-reference.md").read_text() == reference(), "run `make docs`"


def test_committed_page_of_other_trainers_is_current() -> None:
    assert (ROOT / "docs" / "moving-over.md").read_text() == page(), "run `make docs`"


def test_reference_explains_every_key() -> None:
    for line in reference().splitlines():
        if line.startswith("| `"):
            assert not line.endswith("|  |"), line


def errors(text: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema())
    return [error.message for error in validator.iter_errors(parse(text, "r").values)]


def test_schema_agrees_with_the_specs() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert errors(GOOD) == []
    assert errors("extends: base.yaml\noptim: {schedule: linear}\n") == []
    assert errors("optim: {schedule: linear}\n")
    assert errors(GOOD.replace("2e-4", "0"))
    assert errors(GOOD.replace("2e-4", "2e-4, lr: 1"))
    assert errors(GOOD.replace("path: hf://org/rows", "limit: 1"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    load_recipe(path, check_files=False)
    assert "# yaml-language-server: $schema=" in path.read_text()
    assert errors(path.read_text()) == []


def test_aliases_point_to_existing_keys() -> None:
    known = {dotted(path) for paths in schema_tree.key_index(Recipe).values() for path in paths}
    assert set(Recipe.aliases.values()) <= known
    assert set(Recipe.sections.values()) <= known
    assert not Recipe.aliases.keys() & Recipe.migration_hints.keys()
    assert not (common.KEYS.keys() | common.HINTS.keys()) & schema_tree.key_index(Recipe).keys()
