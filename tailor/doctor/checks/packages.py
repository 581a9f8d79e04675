"""Optional packages that the recipe uses."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from tailor.doctor.finding import Context, Finding
from tailor.doctor.needs import read, written
from tailor.spec.recipe import Recipe
from tailor.spec.scale import strategy_class
from tailor.spec.strategy import Strategy

_STORES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""Protocol of a URL -> the module that opens it."""
_TASKS = {"rouge": "rouge_score", "bleu": "sacrebleu", "chrf": "sacrebleu", "lm_eval": "lm_eval"}
"""Evaluation task -> its module."""
_INSTALL = {
    "gguf": "tailor[gguf]",
    "datasketch": "tailor[doctor]",
    "deepspeed": "tailor[deepspeed]",
    "schedulefree": "tailor[schedulefree]",
    "liger_kernel": "tailor[liger]",
    "wandb": "tailor[wandb]",
    "mlflow": "tailor[mlflow]",
    "rouge_score": "tailor[evaluate]",
    "sacrebleu": "tailor[evaluate]",
    "lm_eval": "tailor[lm-eval]",
}


def check(context: Context) -> Iterator[Finding]:
    if context.recipe is None:
        return
    needed: dict[str, str] = {}
    for module, key in _needed(context.recipe):
        needed.setdefault(module, key)
    for module, key in needed.items():
        if find_spec(module) is None:
            name = _INSTALL.get(module, module)
            yield Finding("failed", f"{key} needs the package {module}", f"pip install '{name}'")
    present = [module for module in needed if find_spec(module) is not None]
    if present:
        yield Finding("ok", f"the recipe's packages: {', '.join(present)}")


def _needed(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(module, the key that needs it)."""
    if recipe.model.path.endswith(".gguf"):
        yield "gguf", "model.path"
    if recipe.model.kernels == "liger":
        yield "liger_kernel", "model.kernels"
    if recipe.model.quantize is not None or recipe.optim.optimizer.endswith("8bit"):
        yield "bitsandbytes", "model.quantize" if recipe.model.quantize is not None else "optim.optimizer"
    if recipe.optim.optimizer == "schedule_free":
        yield "schedulefree", "optim.optimizer"
    if recipe.data.deduplicate == "near":
        yield "datasketch", "data.deduplicate"
    if (module := _package(recipe.scale.strategy)) is not None:
        yield module, "scale.strategy"
    for name, _ in recipe.track.chosen():
        if name in _INSTALL:
            yield name, f"track.{name}"
    for key, url in (*written(recipe), *read(recipe)):
        if (module := _STORES.get(url.partition("://")[0])) and "://" in url:
            yield module, key
    for task in recipe.evaluate.final.tasks if recipe.evaluate.final is not None else ():
        if (module := _TASKS.get(task.name)) is not None:
            yield module, f"evaluate.final: {task.name}"


def _package(strategy: Strategy | str) -> str | None:
    if not isinstance(strategy, str):
        return strategy.package
    return None if strategy == "auto" else strategy_class(strategy).package
