"""`export` of a recipe: the hub is asked before training begins, and given what the run made."""

from __future__ import annotations

from collections.abc import Callable

from tailor.errors import GateError
from tailor.export import hub
from tailor.export.request import Request
from tailor.runs import evaluations
from tailor.spec.recipe import Recipe
from tailor.store import Store


def require(recipe: Recipe) -> None:
    """StoreError when the hub would refuse the run's artifact: hours of training would be for nothing."""
    if recipe.export.push_to_hub is not None:
        hub.require(_where(recipe))


def push(recipe: Recipe, say: Callable[[str], None]) -> None:
    """Push what the finished run made, where the recipe says so. GateError when its evaluation broke a bound."""
    if recipe.export.push_to_hub is None:
        return
    run, final = Store(recipe.save.to), recipe.evaluate.final
    if final is not None and (failed := evaluations.read(run, final.name or evaluations.FINAL)["failed"]):
        raise GateError(
            f"{run.url} is not pushed: {'; '.join(failed)}",
            hint=f"`tailor push {run.url} {recipe.export.push_to_hub}` pushes it all the same",
        )
    url = hub.push(recipe.save.to, _where(recipe), Request(weights=recipe.export.weights), say=say)
    say(f"pushed to {url}")


def _where(recipe: Recipe) -> hub.Push:
    assert recipe.export.push_to_hub is not None
    return hub.Push(recipe.export.push_to_hub, private=recipe.export.private)
