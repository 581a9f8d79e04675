"""Which strategy a run takes where the recipe leaves it open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tailor.plan.facts import Hardware
from tailor.plan.memory import Memory
from tailor.plan.plan import Plan
from tailor.spec.recipe import Recipe
from tailor.spec.rules.keys import Keys
from tailor.spec.rules.strategy import exclusions
from tailor.spec.scale import STRATEGIES
from tailor.spec.strategy import Ddp, Fsdp, Strategy

GIB = 2**30


def choose(
    recipe: Recipe, memory: Callable[[Strategy], Memory], hardware: Hardware, *, precision: str, usable: float
) -> tuple[Strategy, str]:
    """The strategy and why. memory: the forecast under a strategy, with the smallest micro-batch."""
    asked = recipe.scale.strategy
    if asked != "auto":
        named = STRATEGIES.get(asked)(name=asked) if isinstance(asked, str) else asked
        return named, "as the recipe says"
    ddp, fsdp = Ddp(name="ddp"), Fsdp(name="fsdp")
    if recipe.scale.max_workers == 1:
        return ddp, "one worker has nobody to share with"
    needed, room = memory(ddp).peak, usable * hardware.memory_bytes
    if needed <= room:
        return (
            ddp,
            f"all weights fit each worker: {needed / GIB:.1f} of {hardware.memory_bytes / GIB:.1f} GiB",
        )
    too_much = f"ddp would need {needed / GIB:.1f} of each worker's {hardware.memory_bytes / GIB:.1f} GiB"
    if (reason := ruled_out(fsdp, recipe, compile=recipe.train.compile, precision=precision)) is not None:
        return ddp, f"{too_much}, and {reason} rules fsdp out"
    return fsdp, too_much


def ruled_out(strategy: Strategy, of: Recipe | Plan, *, compile: bool, precision: str) -> str | None:
    """The first key that rules the strategy out, by the rules of a recipe. None where it can be used."""
    values: dict[str, Any] = {
        name: getattr(of, name).model_dump(mode="json") for name in ("model", "method", "optim", "evaluate")
    }
    values["train"] = {"compile": compile, "precision": precision}
    return next((found.setting for found in exclusions(Keys(values, set()), strategy)), None)
