"""Recipes that extend the context measure what this costs at the lengths that the base had, or are told to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tailor.plan import short_context
from tailor.spec.load import load_recipe
from tailor.spec.recipe import Recipe
from tests.plan.test_build import FULL, plan, recipe

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))
POSITIONS = {"meta-llama/Meta-Llama-3-8B-Instruct": 8192}
YARN = {"rope": {"name": "yarn", "factor": 4, "original_length": 8192}}
BEACON = {"adapter": None, "quantize": None, "beacon": {"window": 1024}}
FORGETTING, PASSKEY = {"name": "forgetting"}, {"name": "passkey", "lengths": [16384, 32768]}


def positions_of(made: Recipe) -> int | None:
    config = ROOT / made.model.path / "config.json"
    if config.is_file():
        return int(json.loads(config.read_text())["max_position_embeddings"])
    return POSITIONS.get(made.model.path)


def missing(made: Recipe, positions: int | None = 8192) -> str:
    return short_context.note(made.model, made.method, made.evaluate, positions) or ""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_long_recipe_measures_the_regression(path: Path) -> None:
    made = load_recipe(path, check_files=False)
    is_long = made.model.rope is not None or made.model.beacon is not None
    for positions in (positions_of(made), None):
        assert missing(made, positions) == ""
    without = made.model_copy(update={"evaluate": made.evaluate.model_copy(update={"final": None})})
    assert bool(missing(without, positions_of(made))) == is_long, "control"


def test_four_recipes_are_long() -> None:
    long = {
        one.stem
        for one in SHIPPED
        if {"  rope:", "  beacon:"} & {line[: line.find(":") + 1] for line in one.read_text().splitlines()}
    }
    assert long == {"llama3-8b-80k-qlora", "llama3-8b-beacon", "llama3-8b-beacon-chat", "passkey-tiny"}


@pytest.mark.parametrize(
    ("model", "final", "words"),
    [
        (
            YARN,
            None,
            "{name: forgetting} in evaluate.final.tasks and evaluate.final.compare: [unscaled_base]",
        ),
        (YARN, {"tasks": [FORGETTING]}, "hint: add evaluate.final.compare: [unscaled_base]"),
        (YARN, {"tasks": [FORGETTING], "compare": ["base"]}, "hint: add evaluate.final.compare"),
        (YARN, {"tasks": [FORGETTING], "compare": ["unscaled_base"]}, ""),
        (YARN, {"tasks": [FORGETTING], "compare": ["models/llama"]}, ""),
        (YARN, {"tasks": [PASSKEY], "compare": ["unscaled_base"]}, "hint: add {name: forgetting}"),
        (YARN, {"tasks": [{**PASSKEY, "lengths": [8192, 16384]}], "compare": ["unscaled_base"]}, ""),
        (
            YARN,
            {"tasks": [{"name": "perplexity"}], "compare": ["unscaled_base"]},
            "hint: add {name: forgetting}",
        ),
        (
            YARN,
            {
                "tasks": [{"name": "perplexity"}],
                "compare": ["unscaled_base"],
                "data": {"evaluation": [{"path": "short.jsonl"}]},
            },
            "",
        ),
        ({**YARN, **FULL}, {"tasks": [FORGETTING]}, "hint: add evaluate.final.compare: [base]"),
        ({**YARN, **FULL}, {"tasks": [FORGETTING], "compare": "base"}, ""),
        (BEACON, None, "model.beacon extends the context"),
        (BEACON, {"tasks": [FORGETTING]}, ""),
        (BEACON, {"tasks": [FORGETTING], "compare": "none"}, "hint: add evaluate.final.compare: [base]"),
        ({"rope": {"name": "theta", "theta": 1e6, "length": 8192}}, None, ""),
        ({"rope": {"name": "theta", "theta": 1e6, "length": 8193}}, None, "model.rope extends the context"),
        ({}, None, ""),
    ],
)
def test_what_is_missing_is_named(model: dict[str, Any], final: dict[str, Any] | None, words: str) -> None:
    made = recipe(model=model, data={"pack": False}, evaluate={"final": final} if final else {})
    found = missing(made)
    assert words in found
    assert bool(words) == bool(found)


def test_the_plan_says_so_and_embeddings_need_it_not() -> None:
    notes = plan(model=YARN).notes()
    assert [note for note in notes if "(up to 8,192 tokens); hint: add {name: forgetting}" in note]
    embedding = recipe(model=YARN, method={"name": "gritlm", "mode": "embedding"})
    assert missing(embedding) == ""
