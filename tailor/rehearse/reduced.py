"""The overrides that make a recipe small, and what of it is therefore not rehearsed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from tailor.layout import RECIPE, TOKENS
from tailor.spec.load import dump, load_recipe
from tailor.spec.recipe import Recipe
from tailor.spec.suite import BASE, UNSCALED
from tailor.store.scratch import scratch

ROWS, EVALUATION_ROWS = 64, 16
"""Rows that are read of each source."""
ASKED, NEW_TOKENS = 4, 8
"""Rows of each evaluation task, and generated tokens."""
PASSAGES = 2_000
"""Largest corpus that is embedded."""
STEPS, STOP = 4, 2
"""Optimizer steps, and the step after which training stops and resumes."""
LENGTH, MAX_LENGTH = 512, 4096
"""Length of a training row: at least the first and at most the second, so that some of the rows fit."""

Override = tuple[str, Any]


def with_overrides(recipe: Recipe, overrides: Sequence[Override]) -> Recipe:
    """The recipe with these keys changed, checked by the rules of recipes. Raises RecipeError."""
    with scratch() as folder:
        file = folder / RECIPE
        given = recipe.model_dump(mode="json", exclude_unset=True)  # a key may mean more than its default
        file.write_text(dump(given), encoding="utf-8")
        return load_recipe(file, written(overrides), check_files=False)


def written(overrides: Sequence[Override]) -> list[str]:
    """The overrides as on the command line."""
    return [f"{key}={_yaml(value)}" for key, value in overrides]


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=100_000)
    return text.removesuffix("\n").removesuffix("\n...")


def sample(recipe: Recipe, *, whole: bool) -> list[Override]:
    """Read the first rows of each source, in this process on the CPU. whole: the sources have no further rows."""
    found: list[Override] = []
    for section, rows in (("train", ROWS), ("evaluation", EVALUATION_ROWS), ("decontaminate", ROWS)):
        for at, source in enumerate(getattr(recipe.data, section)):
            if source.limit is None or source.limit > rows:
                found.append((f"data.{section}.{at}.limit", rows))
            if getattr(source, "samples", None):
                found.append((f"data.{section}.{at}.samples", min(source.samples, rows)))
    if not whole:  # what depends on the number of rows is as in training
        if recipe.data.holdout is not None and recipe.data.holdout < 0.2:
            found.append(("data.holdout", 0.2))
        if recipe.data.budget.dropped < 0.5:
            found.append(("data.budget.dropped", 0.5))
        found += [("train.steps", STEPS), *_batch(recipe, recipe.data.max_length), *_schedule(recipe)]
    scale, model, train = recipe.scale, recipe.model, recipe.train
    for key, now, small in (
        ("scale.workers", scale.workers, 1),
        ("scale.sequence_parallel", scale.sequence_parallel, 1),
        ("scale.gpu", scale.gpu, False),
        ("scale.strategy", scale.strategy, "auto"),
        ("scale.accelerator", scale.accelerator, None),
        ("scale.address", scale.address, None),
        ("model.kernels", model.kernels, "none"),
        ("model.attention", model.attention if model.attention == "flash_attention_2" else "auto", "auto"),
        ("train.compile", train.compile, False),
        ("train.activation_offloading", train.activation_offloading, False),
        ("train.precision", train.precision if train.precision == "fp16" else "auto", "auto"),
    ):
        if now != small:
            found.append((key, small))
    return found


def small(recipe: Recipe, *, base: str, prefix: str, longest: int) -> list[Override]:
    """Train the twin at `base` for a few short steps into the folder `prefix`. longest: length of a training row."""
    found: list[Override] = [("model.path", base), ("save.to", f"{prefix}/run"), ("save.resume", "auto")]
    found += [("data.store", f"{prefix}/{TOKENS}"), ("save.every", STOP)]
    for key in ("revision", "warm_start"):
        if getattr(recipe.model, key) is not None:
            found.append((f"model.{key}", None))
    if recipe.model.dequantize:
        found.append(("model.dequantize", False))
    found += [
        ("train.steps", STEPS),
        *_batch(recipe, longest),
        *_schedule(recipe),
        *_lengths(recipe, longest),
    ]
    for name, _ in recipe.track.chosen():
        if name != "tensorboard":
            found.append((f"track.{name}", None if getattr(recipe.track, name) is not True else False))
    if recipe.export.push_to_hub is not None:
        found.append(("export.push_to_hub", None))
    return [*found, *_evaluate(recipe)]


def _batch(recipe: Recipe, longest: int) -> Iterator[Override]:
    train, method = recipe.train, recipe.method
    for key in ("epochs", "tokens"):
        if getattr(train, key) is not None:
            yield f"train.{key}", None
    if train.micro_batch_size is not None and train.micro_batch_size > 2:
        yield "train.micro_batch_size", 2
    if method.streams is not None:
        values = method.model_dump()
        for key, size in (("embedding_batch_size", ASKED), ("generative_batch_size", 2)):
            if values.get(key, 0) > size:
                yield f"method.{key}", size
    elif train.batch_tokens is not None:
        yield "train.batch_tokens", min(train.batch_tokens, 2 * longest)
    else:
        yield "train.batch_size", 2


def _schedule(recipe: Recipe) -> Iterator[Override]:
    for key in ("warmup_steps", "decay_steps"):
        if (getattr(recipe.optim, key) or 0) > 1:
            yield f"optim.{key}", 1
    if recipe.evaluate.every is not None:
        yield "evaluate.every", STOP


def _lengths(recipe: Recipe, longest: int) -> Iterator[Override]:
    data, method = recipe.data, recipe.method
    if longest >= data.max_length:
        return
    yield "data.max_length", longest
    yield "data.budget.dropped", 1.0
    if data.min_length is not None and data.min_length > longest:
        yield "data.min_length", None
    if data.on_long == "drop" and not method.joins:  # all examples may be longer
        yield "data.on_long", "truncate"
    values = method.model_dump()
    for key in ("max_query_length", "max_passage_length"):
        if (values.get(key) or 0) > longest:
            yield f"method.{key}", longest
    for key in ("max_prompt_length", "max_completion_length"):
        if (values.get(key) or 0) >= longest:
            yield f"method.{key}", longest // 2


def _evaluate(recipe: Recipe) -> Iterator[Override]:
    evaluate = recipe.evaluate
    if (generation := evaluate.generation) is not None:
        yield "evaluate.generation.limit", min(generation.limit, ASKED)
        yield "evaluate.generation.max_new_tokens", min(generation.max_new_tokens, NEW_TOKENS)
    if evaluate.retrieval is not None:
        yield "evaluate.retrieval.data.limit", min(evaluate.retrieval.data.limit or ASKED, ASKED)
    if (final := evaluate.final) is None:
        return
    key = "evaluate.final"
    if any(task.on_rows for task in final.tasks):
        yield f"{key}.limit", min(final.limit or ASKED, ASKED)
    yield f"{key}.fail_if", {}
    yield f"{key}.workers", 1
    yield f"{key}.intervals.samples", 100
    if any(task.generates for task in final.tasks):
        yield f"{key}.decoding.max_new_tokens", min(final.decoding.max_new_tokens, NEW_TOKENS)
        if final.decoding.samples > 2:
            yield f"{key}.decoding.samples", 2
    if isinstance(final.compare, list) and other_models(recipe):
        yield f"{key}.compare", [one for one in final.compare if one in (BASE, UNSCALED)] or BASE
    for at, source in enumerate(final.data.evaluation if final.data is not None else ()):
        if source.limit is None or source.limit > EVALUATION_ROWS:
            yield f"{key}.data.evaluation.{at}.limit", EVALUATION_ROWS
    for at, task in enumerate(final.tasks):
        yield from _task(f"{key}.tasks.{at}", task)


def _task(key: str, task: Any) -> Iterator[Override]:
    fields = type(task).model_fields
    if "limit" in fields:
        yield f"{key}.limit", min(task.limit or ASKED, ASKED)
    data = getattr(task, "data", None)
    if data is not None and "limit" in type(data).model_fields:
        yield f"{key}.data.limit", min(data.limit or ASKED, ASKED)
    if "lengths" in fields:
        yield f"{key}.lengths", [min(*task.lengths, LENGTH)]
    if "depths" in fields:
        yield f"{key}.depths", task.depths[:1]
        yield f"{key}.samples", 1


def without_corpora(recipe: Recipe, keys: Sequence[str]) -> list[Override]:
    """Leave out the retrieval at these keys."""
    found: list[Override] = []
    if "evaluate.retrieval" in keys:
        found.append(("evaluate.retrieval", None))
        if not recipe.data.evaluation and recipe.data.holdout is None:
            found.append(("evaluate.every", None))
    final = recipe.evaluate.final
    tasks = (
        []
        if final is None
        else [
            task.model_dump(mode="json", exclude_unset=True)
            for at, task in enumerate(final.tasks)
            if f"evaluate.final.tasks.{at}" not in keys
        ]
    )
    if final is not None and len(tasks) < len(final.tasks):
        found.append(("evaluate.final.tasks", tasks) if tasks else ("evaluate.final", None))
    return found


def other_models(recipe: Recipe) -> list[str]:
    """The models of `evaluate.final.compare` that are not made from the base."""
    final = recipe.evaluate.final
    compare = final.compare if final is not None else []
    return [one for one in compare if one not in (BASE, UNSCALED)] if isinstance(compare, list) else []


def not_rehearsed(recipe: Recipe, corpora: Mapping[str, int]) -> list[str]:
    """What of the recipe the rehearsal leaves out, for the user. corpora: key -> passages of those that are too large."""
    model, scale, train = recipe.model, recipe.scale, recipe.train
    final = recipe.evaluate.final
    named = scale.strategy if isinstance(scale.strategy, str) else scale.strategy.name
    outside = [name for name, _ in recipe.track.chosen() if name != "tensorboard"]
    left = (
        (True, "the base's weights: losses and answers mean nothing"),
        (scale.gpu is not False, "the GPU: its kernels, memory and speed (see `tailor plan --device`)"),
        (scale.max_workers > 1, "several workers: scale.workers, scale.sequence_parallel"),
        (named != "auto", f"scale.strategy: {named}"),
        (model.attention == "flash_attention_2", "model.attention: flash_attention_2"),
        (model.kernels != "none", f"model.kernels: {model.kernels}"),
        (train.compile, "train.compile"),
        (train.activation_offloading, "train.activation_offloading"),
        (train.precision == "fp16", "train.precision: fp16"),
        (model.warm_start is not None, "the weights of model.warm_start"),
        (model.dequantize, "model.dequantize"),
        (bool(outside), f"the servers of track: {', '.join(outside)}"),
        (recipe.export.push_to_hub is not None, "the upload of export.push_to_hub"),
        (bool(other_models(recipe)), f"the models of compare: {', '.join(other_models(recipe))}"),
        (
            final is not None and bool(final.fail_if),
            "evaluate.final.fail_if: a random model would violate it",
        ),
        (model.beacon is not None, "merge and export: not possible with model.beacon"),
    )
    large = [f"{key}: its corpus has {count:,} passages" for key, count in corpora.items()]
    return [text for is_left, text in left if is_left] + large
