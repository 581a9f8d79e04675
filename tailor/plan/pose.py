"""`train.pose` with the base model's `config.json`: the positions to cover, and models that cannot skip positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailor.errors import ModelError
from tailor.plan import rope
from tailor.plan.facts import ModelFacts, carries_over
from tailor.spec.recipe import Recipe
from tailor.spec.train import Pose


def planned(recipe: Recipe, facts: ModelFacts) -> Pose | None:
    """`train.pose` with its length; None without. Needs `check`."""
    spec = recipe.train.pose
    return None if spec is None else spec.model_copy(update={"length": spec.length or facts.positions})


def reached(recipe: Recipe, config: Mapping[str, Any], longest: int) -> int:
    """Positions that a training document may reach. config: with `model.rope`; longest: tokens of the longest example."""
    spec = recipe.train.pose
    return longest if spec is None else max(longest, spec.length or rope.positions(config) or 0)


def check(recipe: Recipe, facts: ModelFacts, config: Mapping[str, Any]) -> None:
    """Raise ModelError if the base model cannot be trained with `train.pose`. config: see `checks.check_model`."""
    spec, name = recipe.train.pose, f"{recipe.model.path} ({facts.model_type})"
    if spec is None:
        return
    if (why := carries_over(config)) is not None:
        raise ModelError(
            f"train.pose: {name} does not take its positions from position ids alone: {why}",
            hint="remove train.pose",
        )
    if spec.length is None and not facts.positions:
        raise ModelError(
            f"train.pose: the config.json of {name} does not say how long its sequences may be",
            hint="set train.pose.length",
        )
    extend = "" if facts.model_type in rope.WITHOUT else ", or extend the context with model.rope"
    if spec.length is not None and facts.positions and spec.length > facts.positions:
        raise ModelError(
            f"train.pose.length is {spec.length}, but {name} supports {facts.positions} positions",
            hint=f"set train.pose.length: {facts.positions} or less{extend}",
        )
    length = spec.length or facts.positions or 0
    if length <= recipe.data.max_length:
        raise ModelError(
            f"train.pose: the {length} positions of {name} are not more than data.max_length, {recipe.data.max_length}, so "
            "none could be skipped",
            hint=f"lower data.max_length{extend}",
        )
