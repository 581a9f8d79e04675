"""Choose the strategy for `scale.strategy: auto`."""

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
    """The strategy, and the reason for it. memory: the forecast for a strategy with the smallest micro-batch.

    usable: fraction of a worker's memory that may be used.
    """
    requested = recipe.scale.strategy
    if requested != "auto":
        strategy = STRATEGIES.get(requested)(name=requested) if isinstance(requested, str) else requested
        return strategy, "set by the recipe"
    ddp, fsdp = Ddp(name="ddp"), Fsdp(name="fsdp")
    if recipe.scale.max_workers == 1:
        return ddp, "single worker"
    needed = memory(ddp).peak
    if needed <= usable * hardware.memory_bytes:
        return (
            ddp,
            f"the model fits on each worker: {needed / GIB:.1f} of {hardware.memory_bytes / GIB:.1f} GiB",
        )
    too_much = f"ddp would need {needed / GIB:.1f} of {hardware.memory_bytes / GIB:.1f} GiB per worker"
    if (reason := ruled_out(fsdp, recipe, compile=recipe.train.compile, precision=precision)) is not None:
        return ddp, f"{too_much}, but fsdp does not support {reason}"
    return fsdp, too_much


def ruled_out(strategy: Strategy, of: Recipe | Plan, *, compile: bool, precision: str) -> str | None:
    """The first setting that the strategy does not support, by the rules of recipes. None if it can be used."""
    values: dict[str, Any] = {
        name: getattr(of, name).model_dump(mode="json") for name in ("model", "method", "optim", "evaluate")
    }
    values["train"] = {"compile": compile, "precision": precision}
    return next((found.setting for found in exclusions(Keys(values, set()), strategy)), None)
