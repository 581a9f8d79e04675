"""docs/design/one-step.md names files and functions that exist, and the numbers of the quickstart's model and recipe."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "design" / "one-step.md").read_text()
_STATION = re.compile(r"`(tailor/[\w/]+\.py)`:((?:,?\s+`[\w.]+`)+)")
"""A file, and the names in it that follow the colon."""


def stations(page: str) -> list[tuple[str, str]]:
    """(file, name) of every function and class that a page names."""
    return [
        (file, name) for file, names in _STATION.findall(page) for name in re.findall(r"`([\w.]+)`", names)
    ]


def names_in(file: Path) -> set[str]:
    """Functions and classes of a module, and methods as Class.method."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


@pytest.mark.parametrize(("file", "name"), stations(PAGE))
def test_the_station_exists(file: str, name: str) -> None:
    assert name in names_in(ROOT / file)


def test_every_file_of_the_page_is_a_station() -> None:
    files = set(re.findall(r"tailor/[\w/]+\.py", PAGE))
    assert files == {file for file, _ in stations(PAGE)}
    assert len(files) > 10


def test_the_numbers_of_model_and_recipe() -> None:
    config = json.loads((ROOT / "recipes" / "quickstart" / "base" / "config.json").read_text())
    recipe = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    hidden, wide, rank = (
        config["hidden_size"],
        config["intermediate_size"],
        recipe["model"]["adapter"]["rank"],
    )
    assert f"H = {hidden}, V = {config['vocab_size']}, {layers} layers, {heads} heads" in PAGE
    trained = layers * rank * (4 * (hidden + hidden) + 3 * (hidden + wide))
    assert PAGE.count(f"{trained:,}") == 2
    assert f"{recipe['train']['batch_size']} rows of at most {recipe['data']['max_length']} tokens" in PAGE
    assert f"{recipe['train']['steps']} steps" in PAGE


def test_control_a_missing_function_is_noticed() -> None:
    page = "`tailor/train/step.py`: `StepRunner.step`, `StepRunner.leap`\nand `tailor/train/loop.py`: `run`"
    missing = [(file, name) for file, name in stations(page) if name not in names_in(ROOT / file)]
    assert missing == [("tailor/train/step.py", "StepRunner.leap")]
