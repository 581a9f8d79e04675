"""Resolved recipes, and recipes with random mistakes."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import yaml

from tailor.errors import Problem, RecipeError
from tailor.spec.load import judge, load_recipe, resolved_yaml
from tailor.spec.reading.overrides import override
from tailor.spec.reading.source import parse
from tailor.spec.recipe import Recipe
from tests.helpers.fuzzing import broken
from tests.spec.helpers import GOOD, write

FULL = """\
model:
  path: org/base
  revision: "010"
  adapter: {rank: 4, alpha: 8, target_modules: [q_proj, "on"], modules_to_save: ["1e5"]}
  quantize: {type: int8}
data:
  train:
    - {path: "s3://bucket/é: #x", columns: {prompt: "yes", response: "null"}, weight: 1e-3, limit: 7}
    - {path: hf://org/rows, subset: "~", split: "0x1F"}
  evaluation: [{path: hf://org/other}]
  budget: {dropped: 1}
method: {name: sft, train_on: last_assistant}
optim: {learning_rate: 1e-05, optimizer: sgd, momentum: 0.5, max_grad_norm: null}
train: {steps: 10, batch_tokens: 4096, seed: 0}
scale: {gpu: false, workers: 2}
save: {to: runs/x, every: 3, best: true}
evaluate: {every: 2, generation: {limit: 3}}
track: {tensorboard: false}
"""


@pytest.mark.parametrize("text", [GOOD, FULL], ids=["defaults", "full"])
def test_a_resolved_recipe_loads_back_equal(tmp_path: Path, text: str) -> None:
    recipe = load_recipe(write(tmp_path, text))
    resolved = resolved_yaml(recipe)
    assert load_recipe(write(tmp_path, resolved)) == recipe
    assert resolved_yaml(load_recipe(write(tmp_path, resolved))) == resolved


def test_a_resolved_recipe_is_complete(tmp_path: Path) -> None:
    resolved = parse(resolved_yaml(load_recipe(write(tmp_path))), "r").values
    assert resolved["train"]["seed"] == 42
    assert resolved["data"]["budget"]["dropped"] == 0.05
    assert resolved["optim"]["betas"] == [0.9, 0.999]
    assert "momentum" not in resolved["optim"]  # it has no effect with adamw, so it would be an error


def test_a_split_that_is_not_set_is_not_in_the_resolved_recipe(tmp_path: Path) -> None:
    """For a file, `train` is not the default: `test.jsonl` says another split."""
    recipe = load_recipe(write(tmp_path, FULL), ["data.evaluation.0.split=validation"])
    data = parse(resolved_yaml(recipe), "r").values["data"]
    assert "split" not in data["train"][0]
    assert data["evaluation"][0]["split"] == "validation"
    assert "split" in recipe.model_dump(mode="json")["data"]["train"][0], "control"


def test_plain_pyyaml_would_not_load_back(tmp_path: Path) -> None:
    """Control: without the quotes of our dumper, text becomes numbers."""
    recipe = load_recipe(write(tmp_path, FULL))
    text = yaml.safe_dump(recipe.model_dump(mode="json"))
    document = parse(text, "r")
    assert document.values["model"]["adapter"]["modules_to_save"] == [1e5]


def test_values_are_never_coerced(tmp_path: Path) -> None:
    """Control: pydantic's lax mode accepts text for numbers and `on` for true."""
    values = parse(GOOD.replace("2e-4", '"2e-4"').replace("data:\n", "data:\n  pack: on\n"), "r").values
    assert Recipe.model_validate(values).data.pack is True
    with pytest.raises(RecipeError, match=r"data.pack(.|\n)*optim.learning_rate"):
        load_recipe(write(tmp_path, GOOD.replace("2e-4", '"2e-4"').replace("data:\n", "data:\n  pack: on\n")))


def test_random_mistakes_give_problems_and_no_traceback() -> None:
    chance = random.Random(0)
    good = parse(FULL, "r.yaml")
    refused = 0
    for _ in range(600):
        document = copy.deepcopy(good)
        document.values = broken(good.values, chance)
        try:
            judge(document, Recipe)
        except RecipeError as error:
            refused += 1
            for problem in error.problems:
                assert "\n" not in str(problem)
                assert problem.line > 0
                assert problem.key
                assert len(problem.message) < 12000
    assert 300 < refused < 600


def test_random_overrides_give_problems_and_no_traceback() -> None:
    chance = random.Random(1)
    alphabet = [
        "model",
        "path",
        "data",
        "train",
        ".",
        ".0",
        "=",
        "[",
        "]",
        "{",
        "}",
        ":",
        " ",
        "1e-4",
        "x",
        "'",
        "&",
        "*",
    ]
    for _ in range(600):
        document = parse(FULL, "r.yaml")
        override(document, ["".join(chance.choices(alphabet, k=chance.randint(1, 8)))])
        found: list[Problem] = []
        try:
            judge(document, Recipe)
        except RecipeError as error:
            found = error.problems
        assert all("\n" not in str(problem) for problem in found)
