"""What a recipe cannot do with its model, its data or its hardware."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailor.errors import DataError, ModelError, ScaleError
from tailor.plan import beacon, encoders, pose, quantized, rope
from tailor.plan.batches import batch_spec
from tailor.plan.facts import (
    KERNEL_TYPES,
    DataFacts,
    Hardware,
    ModelFacts,
    carries_over,
    is_recurrent,
    unpackable,
)
from tailor.spec.methods.base import EmbeddingMethod
from tailor.spec.model import Beacon
from tailor.spec.recipe import Recipe
from tailor.spec.tasks.retrieval import Retrieval


def missing_for_isolation(recipe: Recipe) -> list[str]:
    """The settings that the recipe lacks for one forward pass per example."""
    if recipe.method.documents_per_pass is not None:
        return ["another model.path"]
    missing = ["data.pack: false"] * batch_spec(recipe).pack
    missing += ["train.micro_batch_size: 1"] * (recipe.train.micro_batch_size != 1)
    return missing


def check_config(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Raise ModelError for what the base model's `config.json` alone shows that the recipe cannot do."""
    path = recipe.model.path
    try:
        extended = rope.extended(config, recipe.model.rope, path)
        facts = ModelFacts.from_config(extended)
        if facts.layers < 1 or facts.hidden < 0:
            raise ValueError(f"{facts.layers} layers of size {facts.hidden}")
    except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise ModelError(
            f"model.path: the config.json of {path} has a value that makes no model: {error}",
            hint="copy the model's config.json again",
        ) from None
    check_model(recipe, facts, {**extended, **(extended.get("text_config") or {})})


def check_model(recipe: Recipe, facts: ModelFacts, config: Mapping[str, Any]) -> None:
    """Raise ModelError for settings that the model does not support, whatever the data.

    config: the base model's `config.json`, with the entries of its text model on the top level.
    """
    encoders.check(recipe, config)
    quantized.check(recipe.model, config)
    _check_sequences(recipe, facts, config)
    pose.check(recipe, facts, config)
    if batch_spec(recipe).pack and (why := unpackable(config)):
        raise ModelError(
            f"data.pack: {recipe.model.path} ({facts.model_type}) cannot isolate packed documents: {why}",
            hint="set data.pack: false",
        )
    if recipe.train.compile and is_recurrent(config):
        raise ModelError(
            f"train.compile: {recipe.model.path} ({facts.model_type}) has recurrent layers, which compute one document after "
            "another, and each length would be compiled",
            hint="remove train.compile",
        )
    if recipe.model.kernels == "liger" and facts.model_type not in KERNEL_TYPES:
        raise ModelError(
            f"model.kernels: liger is not for {recipe.model.path} ({facts.model_type}); it is for {', '.join(KERNEL_TYPES)}",
            hint="set model.kernels: none",
        )
    if recipe.model.beacon is not None and (why := beacon.refusal(config)):
        raise ModelError(
            f"model.beacon: {recipe.model.path} cannot have beacons: {why}",
            hint="remove model.beacon, or use another base model",
        )
    if recipe.model.beacon is not None and facts.positions:
        spec = recipe.model.beacon
        if beacon.context(spec, facts.positions) <= spec.window:
            raise ModelError(
                f"model.beacon.window: a window of {spec.window} tokens with its beacons and a second one exceed the "
                f"{facts.positions} positions of {recipe.model.path}",
                hint="lower model.beacon.window",
            )
    joins = recipe.method.joins and recipe.model.beacon is None
    if joins and facts.positions and recipe.data.max_length > facts.positions:
        raise ModelError(
            f"data.max_length: method {recipe.method.name} makes rows of {recipe.data.max_length} tokens, but "
            f"{recipe.model.path} supports {facts.positions} positions",
            hint=f"set data.max_length: {facts.positions} or less, or extend the context with model.rope",
        )
    if recipe.method.embedding is not None:
        _check_sizes(recipe.method.embedding, facts)
    own_head = facts.has_head and not facts.tied
    if not own_head and recipe.model.adapter is None and recipe.optim.learning_rate_ratios.head != 1:
        why = ": it is tied to the embeddings" if facts.tied else ""
        raise ModelError(
            f"optim.learning_rate_ratios.head: {recipe.model.path} has no output head of its own{why}",
            hint="set optim.learning_rate_ratios.embeddings, or remove it",
        )


def check_device(recipe: Recipe, hardware: Hardware) -> None:
    """Raise ScaleError for settings that need a GPU where there is none."""
    if recipe.scale.gpu is True and hardware.device != "cuda":
        raise ScaleError(
            "scale.gpu is true, but there is no GPU",
            hint="set scale.gpu: auto, or run on a machine or cluster with GPUs",
        )
    if recipe.train.activation_offloading and hardware.device != "cuda":
        raise ScaleError(
            "train.activation_offloading is true, but there is no GPU whose activations could move to host memory",
            hint="set train.activation_offloading: false, or run on a machine or cluster with GPUs",
        )
    if recipe.model.kernels == "liger" and hardware.device != "cuda":
        raise ScaleError(
            "model.kernels is liger, but there is no GPU",
            hint="set model.kernels: none, or run on a machine or cluster with GPUs",
        )
    if recipe.model.attention == "flash_attention_2" and hardware.device != "cuda":
        raise ScaleError(
            "model.attention is flash_attention_2, but there is no GPU",
            hint="set model.attention: auto, or run on a machine or cluster with GPUs",
        )


def check(
    recipe: Recipe, data: DataFacts, facts: ModelFacts, hardware: Hardware, config: Mapping[str, Any]
) -> None:
    """Raise DataError, ModelError or ScaleError if the recipe cannot run like this. config: see `check_model`."""
    check_device(recipe, hardware)
    check_model(recipe, facts, config)
    if recipe.model.beacon is not None:
        _check_beacons(recipe, recipe.model.beacon, data, facts)
    elif facts.positions and data.longest > facts.positions:
        raise ModelError(
            f"the longest example has {data.longest} tokens, but {recipe.model.path} supports "
            f"{facts.positions} positions",
            hint=f"set data.max_length: {facts.positions} or less, or extend the context with model.rope",
        )
    if recipe.method.embedding is not None:
        _check_text_lengths(data, facts)
    method = recipe.method
    if any(0 < number < method.min_examples for number in (data.examples, data.evaluation_examples)):
        raise DataError(
            f"method {method.name} {method.too_few_examples}, and a split has only one example",
            hint="add rows, or change data.holdout",
        )
    if evaluates_rows(recipe) and not data.evaluation_examples:
        raise DataError(
            "the recipe evaluates during training, but there is no evaluation example after preparation",
            hint="raise data.holdout, or see `tailor data report` for the dropped rows",
        )


def evaluates_rows(recipe: Recipe) -> bool:
    """Whether the recipe needs evaluation rows during training."""
    evaluate, stopping = recipe.evaluate, recipe.train.early_stopping
    by_loss = evaluate.every is not None and evaluate.retrieval is None
    watches_rows = stopping is not None and stopping.metric not in Retrieval.figures
    return by_loss or evaluate.generation is not None or recipe.save.best or watches_rows


def _check_beacons(recipe: Recipe, spec: Beacon, data: DataFacts, facts: ModelFacts) -> None:
    if data.longest <= spec.window:
        raise DataError(
            f"model.beacon: the longest example has {data.longest} tokens and fits into one window ({spec.window} tokens), "
            "so no beacon would be trained",
            hint="use longer examples, or lower model.beacon.window",
        )
    coarse = (beacon.coarsest(spec),) * (beacon.windows_of(data.longest, spec.window) - 1)
    reached = beacon.positions(spec, coarse)
    if facts.positions and reached > facts.positions:
        raise ModelError(
            f"model.beacon: the longest example has {data.longest} tokens and needs {reached} positions even with ratio "
            f"{coarse[0]}, but {recipe.model.path} supports {facts.positions}",
            hint=f"set data.max_length: {beacon.context(spec, facts.positions)} or less, or add a larger ratio to model.beacon.ratios",
        )


def _check_sequences(recipe: Recipe, facts: ModelFacts, config: Mapping[str, Any]) -> None:
    """Raise ModelError if the model's sequences cannot be split over workers."""
    parts, path = recipe.scale.sequence_parallel, recipe.model.path
    if parts == 1:
        return
    why = carries_over(config) or facts.unsplittable
    if why is not None:
        raise ModelError(
            f"scale.sequence_parallel: {path} ({facts.model_type}) cannot split its sequences: {why}",
            hint="set scale.sequence_parallel: 1",
        )
    if facts.heads % parts:
        fits = [str(n) for n in range(2, facts.heads + 1) if facts.heads % n == 0]
        raise ModelError(
            f"scale.sequence_parallel is {parts}, but the {facts.heads} attention heads of {path} are not divisible by it",
            hint=f"set it to one of {', '.join(fits)}" if fits else "set it to 1",
        )


def _check_text_lengths(data: DataFacts, facts: ModelFacts) -> None:
    if facts.positions and data.longest_text > facts.positions:
        raise ModelError(
            f"the longest text to embed has {data.longest_text} tokens, but the model supports {facts.positions} positions",
            hint=f"set method.max_passage_length: {facts.positions} or less",
        )


def _check_sizes(method: EmbeddingMethod, facts: ModelFacts) -> None:
    full_size = method.projection or facts.hidden
    if method.matryoshka and max(method.matryoshka) >= full_size:
        raise ModelError(
            f"method.matryoshka: {max(method.matryoshka)} is not smaller than the full embedding size, {full_size}",
            hint="remove it, or set a larger method.projection",
        )
