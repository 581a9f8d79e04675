"""`extends` and overrides from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.spec.load import load_recipe
from tailor.spec.recipe import Recipe
from tests.spec.helpers import GOOD, problems, write


def test_overrides_are_read_like_the_file(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path),
        [
            "optim.learning_rate=1e-5",
            "model.adapter.rank=4",
            "data.train.0.limit=3",
            "data.train.1.path=hf://org/more",
            "optim.betas=[0.8, 0.9]",
            "train={steps: 7, precision: bf16}",
            'model.revision="010"',
            "optim.max_grad_norm=null",
            "data.template=",
        ],
    )
    assert recipe.optim.learning_rate == 1e-5
    assert recipe.optim.betas == (0.8, 0.9)
    assert recipe.optim.max_grad_norm is None
    assert recipe.model.adapter is not None
    assert recipe.model.adapter.rank == 4
    assert recipe.model.revision == "010"
    assert [(source.path, source.limit) for source in recipe.data.train] == [
        ("hf://org/rows", 3),
        ("hf://org/more", None),
    ]
    assert (recipe.train.steps, recipe.train.precision, recipe.data.template) == (7, "bf16", None)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("optim.learnin_rate=1", "optim.learnin_rate: unknown key; did you mean learning_rate?"),
        ("optim.learning_rate=fast", "optim.learning_rate: fast is not a number over 0"),
        ("lr=1", "lr: unknown key; it belongs at optim.learning_rate"),
        ("optim.learning_rate", "optim.learning_rate is not an override; write section.key=value"),
        ("=3", "=3 is not an override; write section.key=value"),
        ("optim..lr=3", "optim..lr=3 is not an override; write section.key=value"),
        (
            "data.train.5.path=x",
            "data.train.5.path: data.train has no item 5; it has 1, counted from 0",
        ),
        ("data.train.path=x", "data.train.path: data.train is a list; write data.train.0.path"),
        (
            "model.path.x=1",
            "model.path.x: model.path is a single value and has no keys; write model.path=VALUE",
        ),
        ("model.revision=010", 'model.revision: 010 is not text; put it in quotes: "010"'),
        ("train.steps=[1", "train.steps: not YAML: a [ is not closed, or a comma is missing"),
        ("model=null", "model: empty section; add keys to it, or remove it"),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, text: str) -> None:
    assert f"command line: {text}" in problems(write(tmp_path), override)


@pytest.mark.parametrize("override", ["model.revision={}", "--token={}", "{}", "model.{}"])
def test_a_secret_is_never_shown(tmp_path: Path, override: str) -> None:
    secret = "hf_ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    found = problems(write(tmp_path), override.format(secret))
    assert found
    assert not any(secret in line for line in found)


def test_an_override_given_twice(tmp_path: Path) -> None:
    assert problems(write(tmp_path), "train.steps=1", "train.steps=2") == [
        "command line: train.steps: given twice; remove one of them"
    ]


@pytest.mark.parametrize(
    ("written", "given", "kept", "gone"),
    [
        ("train: {epochs: 2}", "train.steps=30", "train.steps", "train.epochs"),
        ("train: {tokens: 900}", "train.epochs=3", "train.epochs", "train.tokens"),
        ("train: {steps: 5}", "train.tokens=5000", "train.tokens", "train.steps"),
        ("train: {batch_size: 8}", "train.batch_tokens=9000", "train.batch_tokens", "train.batch_size"),
        (
            "optim: {learning_rate: 1e-4, warmup_ratio: 0.1}",
            "optim.warmup_steps=0",
            "optim.warmup_steps",
            "optim.warmup_ratio",
        ),
        (
            "data: {train: [{path: hf://org/a}], holdout: 0.1}",
            "data.evaluation=[{path: hf://org/b}]",
            "data.evaluation",
            "data.holdout",
        ),
    ],
)
def test_the_command_line_replaces_the_other_key_of_a_pair(
    tmp_path: Path, written: str, given: str, kept: str, gone: str
) -> None:
    section = written.split(":", 1)[0]
    kept_lines = GOOD.replace("data:\n  train: [{path: hf://org/rows}]\n", "") if section == "data" else GOOD
    lines = [line for line in kept_lines.splitlines() if not line.startswith(f"{section}:")]
    path = write(tmp_path, "\n".join([*lines, written]) + "\n")

    def value(recipe: Recipe, key: str) -> Any:
        return getattr(getattr(recipe, key.split(".")[0]), key.split(".")[1])

    before, recipe = load_recipe(path, check_files=False), load_recipe(path, [given], check_files=False)
    assert value(before, gone)
    assert not value(before, kept)
    assert value(recipe, gone) in (None, [])
    assert value(recipe, kept) not in (None, [])
    swapped = f"{gone}={value(before, gone)}"
    if section != "data":
        assert any("use only one of them" in line for line in problems(path, given, swapped)), (
            "both are given"
        )


def test_extends_merges_mappings_and_replaces_lists(tmp_path: Path) -> None:
    write(tmp_path, GOOD + "train: {steps: 5, seed: 3}\n", "base.yaml")
    over = write(
        tmp_path, "extends: base.yaml\ntrain: {steps: 6}\ndata:\n  train: [{path: hf://org/other}]\n"
    )
    recipe = load_recipe(over)
    assert (recipe.train.steps, recipe.train.seed) == (6, 3)
    assert [source.path for source in recipe.data.train] == ["hf://org/other"]
    assert load_recipe(tmp_path / "base.yaml").train.steps == 5  # control: the base alone differs


def test_the_path_of_a_base_is_relative_to_the_file(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    write(tmp_path, name="base.yaml")
    assert load_recipe(write(inner, "extends: ../base.yaml\n")).save.to == "runs/x"


def test_problems_keep_the_position_of_their_own_file(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("save: {to", "save: {evry: 1, to"), "base.yaml")
    over = write(tmp_path, "extends: base.yaml\n\noptim: {eps: 0}\n")
    assert problems(over) == [
        "base.yaml:6:8: save.evry: unknown key; did you mean every?",
        "r.yaml:3:14: optim.eps: 0 is not a number over 0",
    ]


def test_a_value_that_an_override_replaces_is_not_validated(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("2e-4", "fast"))
    assert problems(path) == ["r.yaml:5:24: optim.learning_rate: fast is not a number over 0"]
    assert problems(path, "optim.learning_rate=1e-4") == []


def test_a_recipe_cannot_extend_itself(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "extends: r.yaml\n")
    assert problems(path) == ["r.yaml:7:10: extends: is this file itself; remove it, or name another recipe"]


@pytest.mark.parametrize("name", ["rr.yaml", "sub", "r.yml"])
def test_a_missing_recipe_suggests_a_similar_file(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", name="inner.yaml")
    (text,) = problems(tmp_path / name)
    similar = "sub/inner.yaml" if name == "sub" else "r.yaml"
    assert text.replace(f"{tmp_path}/", "").endswith(f"; did you mean {similar}?")


def test_a_missing_recipe_suggests_a_file_in_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    write(tmp_path / "recipes", name="quickstart.yaml")
    monkeypatch.chdir(tmp_path)
    assert problems(Path("quikstart.yaml")) == [
        "quikstart.yaml: no such file; did you mean recipes/quickstart.yaml?"
    ]
