"""A recipe, what is known of its data, model and machine → a plan."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tailor.errors import DataError, ModelError, ScaleError
from tailor.plan import beacon, deepspeed, rope
from tailor.plan.batches import batch_spec
from tailor.plan.chunks import chunks, embedding_bytes
from tailor.plan.facts import CARRIES_OVER, DataFacts, Hardware, ModelFacts
from tailor.plan.memory import Memory, forecast, trained_parameters
from tailor.plan.plan import Plan, Precision, Reference
from tailor.plan.strategy import choose
from tailor.spec.methods.base import EmbeddingMethod
from tailor.spec.methods.union import Method
from tailor.spec.model import Beacon, Model
from tailor.spec.optim import Optim
from tailor.spec.recipe import Recipe
from tailor.spec.strategy import Strategy

MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Above this many tokens a forward pass gains no more speed (on a CPU it loses some, once activations leave
the caches: 1.1 times as long at 8 192 as at 1 024 tokens for 25 M weights), so the default stops there."""
USABLE_MEMORY = 0.8


def build(
    recipe: Recipe,
    data: DataFacts,
    model_config: Mapping[str, Any],
    hardware: Hardware,
    *,
    run_url: str,
    resume_from: str | None = None,
    chunk_tokens: int | None = None,
) -> Plan:
    """Decide every number of a run. `model_config` is the base model's `config.json`.

    `resume_from`: URL of another run's checkpoint to begin with. `chunk_tokens`: of texts to embed, as an earlier part of
    the run took them.
    """
    batches = batch_spec(recipe, data.first_step)
    config = rope.extended(model_config, recipe.model.rope, recipe.model.path)
    if recipe.model.beacon is None:  # which refuses every rope that depends on lengths
        rope.check_batches(
            config, max(data.longest, data.longest_text), _not_apart(recipe), recipe.model.path
        )
    facts = ModelFacts.from_config(config)
    precision = choose_precision(recipe.train.precision, hardware)
    frozen_dtype = _frozen_dtype(recipe.model, precision)
    gpu = recipe.scale.gpu if isinstance(recipe.scale.gpu, bool) else hardware.device == "cuda"
    _check(recipe, data, facts, hardware, {**config, **(config.get("text_config") or {})})

    length = max(1, data.longest_row)
    embeddings = embedding_bytes(recipe.method, data, facts)
    sizes = deepspeed.zero_sizes(recipe.scale.strategy, recipe, facts)

    def memory(tokens: int, strategy: Strategy) -> Memory:
        rows = tokens // length if recipe.model.beacon else 1  # to beacons a row is a document
        found = forecast(
            facts,
            recipe.model,
            optimizer=recipe.optim.optimizer,
            frozen_dtype=frozen_dtype,
            mixed_precision=precision != "fp32",
            activation_checkpointing=recipe.train.activation_checkpointing,
            activation_offloading=recipe.train.activation_offloading,
            tiled_mlp=recipe.train.tiled_mlp,
            rows=rows,
            length=tokens // rows,
            sequence_parallel=recipe.scale.sequence_parallel,
            reference_copy=reference_model(recipe.method, recipe.model, strategy) == "copy",
            strategy=strategy,
            workers=recipe.scale.max_workers,
            on_host=hardware.device == "cpu",
            zero_sizes=sizes,
        )
        return dataclasses.replace(found, embeddings=embeddings)

    least = max((recipe.train.micro_batch_size or 1) * length, data.longest_text)
    strategy, reason = choose(
        recipe, functools.partial(memory, least), hardware, precision=precision, usable=USABLE_MEMORY
    )
    if precision not in strategy.precisions:
        raise ModelError(
            f"train.precision: auto is {precision} on these GPUs, and scale.strategy {strategy.name} computes in "
            f"{' or '.join(strategy.precisions)}",
            hint="set train.precision: fp32, or scale.strategy: ddp",
        )

    groups = recipe.scale.max_workers // recipe.scale.sequence_parallel
    per_worker = -(-data.rows_per_batch // groups)
    micro = recipe.train.micro_batch_size
    room = USABLE_MEMORY * hardware.memory_bytes
    chunked = chunks(
        recipe.method,
        data,
        lambda tokens: memory(tokens, strategy),
        tokens=MICRO_BATCH_TOKENS[hardware.device],
        room=room,
        kept=chunk_tokens,
    )
    if micro is None:
        micro = per_worker
        limit = max(1, MICRO_BATCH_TOKENS[hardware.device] * recipe.scale.sequence_parallel // length)
        while micro > limit or (micro > 1 and memory(micro * length, strategy).peak > room):
            micro = -(-micro // 2)
    micro_batches = -(-data.rows_per_batch // micro)
    return Plan(
        run_url=run_url,
        tokens_url=data.tokens_url,
        fingerprint=data.fingerprint,
        train_fingerprint=data.train_fingerprint,
        model=_with_absolute_path(recipe.model),
        method=recipe.method,
        optim=recipe.optim,
        save=recipe.save,
        evaluate=recipe.evaluate,
        divergence=recipe.train.divergence,
        workers=recipe.scale.max_workers,
        gpu=gpu,
        strategy=strategy,
        strategy_reason=reason,
        deepspeed=deepspeed.settings(strategy, recipe, facts, precision=precision, micro=micro),
        precision=precision,
        frozen_dtype=frozen_dtype,
        sequence_parallel=recipe.scale.sequence_parallel,
        activation_checkpointing=int(recipe.train.activation_checkpointing),
        activation_offloading=recipe.train.activation_offloading,
        tiled_mlp=recipe.train.tiled_mlp,
        compile=recipe.train.compile,
        batches=batches,
        row_length=length,
        reference=reference_model(recipe.method, recipe.model, strategy),
        micro_batch_size=micro,
        accumulation=-(-micro_batches // groups),
        idle_workers=max(0, groups - micro_batches) if batches.streams is None else 0,
        chunk_size=chunked.size,
        chunk_tokens=chunked.most,
        resume_from=resume_from,
        steps=data.steps,
        steps_per_epoch=data.steps_per_epoch,
        token_budget=recipe.train.tokens,
        run_tokens=data.run_tokens,
        warmup_steps=_warmup(recipe.optim, data.steps),
        tokens_per_epoch=data.tokens,
        supervised_tokens_per_epoch=data.supervised_tokens,
        trained_parameters=trained_parameters(facts, recipe.model),
        memory=memory(max(micro * length, chunked.longest), strategy),
    )


def reference_model(method: Method, model: Model, strategy: Strategy) -> Reference | None:
    """Where the reference log-probabilities come from, for a method that has some."""
    asked = method.reference_source
    if asked is None:
        return None
    if asked == "auto":
        if model.adapter is not None:
            return "adapter_off"
        return "precomputed" if strategy.shards_optimizer else "copy"
    return asked


def choose_precision(asked: str, hardware: Hardware) -> Precision:
    """bf16 where it is fast, else fp16 on a GPU, else fp32; what is asked for is taken as it is."""
    if asked == "auto":
        return "bf16" if hardware.bf16 else "fp16" if hardware.device == "cuda" else "fp32"
    return asked  # type: ignore[return-value]


def _frozen_dtype(model: Model, precision: Precision) -> Literal["float32", "bfloat16", "float16"]:
    if model.dtype != "auto":
        return model.dtype
    return {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]  # type: ignore[return-value]


def _warmup(optim: Optim, steps: int) -> int:
    if optim.warmup_steps is not None:
        if optim.warmup_steps and optim.warmup_steps >= steps:
            raise DataError(
                f"optim.warmup_steps: the warm-up of {optim.warmup_steps} steps never ends, for the data make {steps}",
                hint="lower it, set optim.warmup_ratio, or train longer (train.epochs, train.steps)",
            )
        return optim.warmup_steps
    return round((optim.warmup_ratio or 0.0) * steps)


def _with_absolute_path(model: Model) -> Model:
    """Workers run in other folders, and an adapter must find its base from anywhere."""
    local = Path(model.path).expanduser()
    return model.model_copy(update={"path": str(local.resolve())}) if local.is_dir() else model


def _not_apart(recipe: Recipe) -> list[str]:
    """Settings that would give each example a forward pass of its own, and that the recipe does not have."""
    if recipe.method.documents_per_pass is not None:
        return ["another model.path"]
    wanted = ["data.pack: false"] * batch_spec(recipe).pack
    wanted += ["train.micro_batch_size: 1"] * (recipe.train.micro_batch_size != 1)
    return wanted + ["train.compile: false"] * recipe.train.compile


def _check(
    recipe: Recipe, data: DataFacts, facts: ModelFacts, hardware: Hardware, config: Mapping[str, Any]
) -> None:
    if recipe.scale.gpu is True and hardware.device != "cuda":
        raise ScaleError(
            "scale.gpu is true, but no GPU was found",
            hint="set scale.gpu: auto, or run on a machine or cluster with GPUs",
        )
    if recipe.train.activation_offloading and hardware.device != "cuda":
        raise ScaleError(
            "train.activation_offloading moves what a GPU holds to host memory, and no GPU was found",
            hint="set train.activation_offloading: false, or run on a machine or cluster with GPUs",
        )
    _check_sequences(recipe, facts)
    if batch_spec(recipe).pack and (why := CARRIES_OVER.get(facts.model_type)):
        raise ModelError(
            f"{recipe.model.path} ({facts.model_type}) lets packed documents see each other: {why}",
            hint="set data.pack: false",
        )
    if recipe.model.quantize and facts.experts > 1 and not recipe.model.trust_remote_code:
        raise ModelError(
            f"model.quantize: bitsandbytes quantizes linear modules, and the experts of {recipe.model.path} are held in "
            "one tensor, so most of its weights would stay as they are",
            hint="leave model.quantize out",
        )
    if recipe.model.beacon is not None:
        _check_beacons(recipe, recipe.model.beacon, data, facts, config)
    elif facts.positions and data.longest > facts.positions:
        raise ModelError(
            f"the longest example has {data.longest} tokens, but {recipe.model.path} was made for "
            f"{facts.positions} positions",
            hint=f"set data.max_length: {facts.positions} or less, or make it for longer ones with model.rope",
        )
    if recipe.method.embedding is not None:
        _check_embedding(recipe.method.embedding, data, facts)
    method = recipe.method
    if any(0 < number < method.min_examples for number in (data.examples, data.evaluation_examples)):
        raise DataError(
            f"method {method.name} {method.too_few_examples}, and a split has only one example",
            hint="give more rows, or another data.holdout",
        )
    evaluate = recipe.evaluate
    by_loss = evaluate.every and evaluate.retrieval is None
    needs_evaluation = by_loss or evaluate.generation or recipe.save.best
    if needs_evaluation and not data.evaluation_examples:
        raise DataError(
            "the recipe evaluates, but no evaluation example is left after preparation",
            hint="raise data.holdout, or look at `tailor data report` for why rows were lost",
        )


def _check_beacons(
    recipe: Recipe, spec: Beacon, data: DataFacts, facts: ModelFacts, config: Mapping[str, Any]
) -> None:
    if why := beacon.refusal(config):
        raise ModelError(
            f"model.beacon: {recipe.model.path} cannot have beacons: {why}",
            hint="leave model.beacon out, or take another base",
        )
    if data.longest <= spec.window:
        raise DataError(
            f"model.beacon: the longest example has {data.longest} tokens and fits into one window of {spec.window}, so "
            "no beacon would be trained",
            hint="give longer examples, or a smaller model.beacon.window",
        )
    coarse = (beacon.coarsest(spec),) * (beacon.windows_of(data.longest, spec.window) - 1)
    reached = beacon.positions(spec, coarse)
    if facts.positions and reached > facts.positions:
        raise ModelError(
            f"model.beacon: the longest example has {data.longest} tokens, which reach {reached} positions with a ratio of "
            f"{coarse[0]}, but {recipe.model.path} was made for {facts.positions}",
            hint=f"set data.max_length: {beacon.context(spec, facts.positions)} or less, or add a coarser ratio",
        )


def _check_sequences(recipe: Recipe, facts: ModelFacts) -> None:
    """Can the model's sequences be held by several workers together?"""
    parts, path = recipe.scale.sequence_parallel, recipe.model.path
    if parts == 1:
        return
    why = CARRIES_OVER.get(facts.model_type) or facts.across
    if why is not None:
        raise ModelError(
            f"scale.sequence_parallel: {path} ({facts.model_type}) cannot be cut between tokens: {why}",
            hint="set scale.sequence_parallel: 1",
        )
    if facts.heads % parts:
        fits = [str(n) for n in range(2, facts.heads + 1) if facts.heads % n == 0]
        raise ModelError(
            f"scale.sequence_parallel: {parts} workers cannot share the {facts.heads} attention heads of {path}",
            hint=f"set it to one of {', '.join(fits)}" if fits else "set it to 1",
        )


def _check_embedding(method: EmbeddingMethod, data: DataFacts, facts: ModelFacts) -> None:
    whole = method.projection or facts.hidden
    if method.matryoshka and max(method.matryoshka) >= whole:
        raise ModelError(
            f"method.matryoshka: {max(method.matryoshka)} is not shorter than the whole embedding of {whole}",
            hint="leave it out, or set a larger method.projection",
        )
    if facts.positions and data.longest_text > facts.positions:
        raise ModelError(
            f"the longest text to embed has {data.longest_text} tokens, but the model was made for {facts.positions} positions",
            hint=f"set method.max_passage_length: {facts.positions} or less",
        )
