"""The section `export` of a recipe: checks access to the hub before training, and uploads the finished run."""

from __future__ import annotations

from collections.abc import Callable

from tailor.errors import GateError
from tailor.export import hub
from tailor.export.request import Request
from tailor.models.own_code import Trust
from tailor.runs import evaluations
from tailor.spec.recipe import Recipe
from tailor.store import Store


def require(recipe: Recipe) -> None:
    """StoreError when the hub would reject the upload. Called before training, so that no training time is lost."""
    if recipe.export.push_to_hub is not None:
        hub.require(_destination(recipe))


def push(recipe: Recipe, say: Callable[[str], None]) -> None:
    """Push the finished run, if the recipe says so. GateError when its evaluation violated a bound of `fail_if`."""
    if recipe.export.push_to_hub is None:
        return
    run, final = Store(recipe.save.to), recipe.evaluate.final
    if final is not None and (failed := evaluations.read(run, final.name or evaluations.FINAL)["failed"]):
        raise GateError(
            f"{run.url} was not pushed: {'; '.join(failed)}",
            hint=f"to push it anyway: tailor push {run.url} {recipe.export.push_to_hub}",
        )
    request = Request(weights=recipe.export.weights, trust=Trust.of_model(recipe.model))
    url = hub.push(recipe.save.to, _destination(recipe), request, say=say)
    say(f"pushed to {url}")


def _destination(recipe: Recipe) -> hub.Push:
    assert recipe.export.push_to_hub is not None
    return hub.Push(recipe.export.push_to_hub, private=recipe.export.private)
