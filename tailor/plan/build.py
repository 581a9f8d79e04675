"""Build the plan from the recipe and the facts about its data, model and hardware."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tailor.errors import ModelError
from tailor.plan import checks, deepspeed, experts, pose, quantized, rope, schedule
from tailor.plan.batches import batch_spec
from tailor.plan.chunks import chunks, embedding_bytes
from tailor.plan.facts import DataFacts, Hardware, ModelFacts
from tailor.plan.memory import Memory, forecast, trained_parameters
from tailor.plan.outline import NOT_BUILT, NoOutline, Outline
from tailor.plan.plan import Plan, Precision, Reference, SourceTokens
from tailor.plan.strategy import choose
from tailor.spec.methods.union import Method
from tailor.spec.model import Model
from tailor.spec.recipe import Recipe
from tailor.spec.strategy import Strategy

MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Upper limit of the default micro-batch, in tokens. Larger forward passes are not faster; on a CPU they are slower once
activations exceed the caches (25M weights: 1.1 times the time per token at 8192 tokens than at 1024)."""
USABLE_MEMORY = 0.8
"""Fraction of a worker's memory that the forecast may use; the rest covers fragmentation and the forecast's error, which
tests/plan/test_memory.py limits to 10 % for activations."""


def build(
    recipe: Recipe,
    data: DataFacts,
    model_config: Mapping[str, Any],
    hardware: Hardware,
    *,
    run_url: str,
    resume_from: str | None = None,
    chunk_tokens: int | None = None,
    outline: Outline | NoOutline = NOT_BUILT,
) -> Plan:
    """Decide every number of a run. Raises DataError, ModelError or ScaleError if the recipe cannot run like this.

    model_config: the base model's `config.json`. resume_from: URL of another run's checkpoint to start from.
    chunk_tokens: tokens per chunk of texts to embed, from an earlier part of the run; kept, so that a resumed run is exact.
    outline: the structure of the base model, if transformers can build it.
    """
    batches = batch_spec(recipe, data.first_step)
    config = rope.extended(model_config, recipe.model.rope, recipe.model.path)
    if recipe.model.beacon is None:  # beacons already exclude RoPE types that depend on the length
        rope.check_batches(
            config,
            pose.reached(recipe, config, max(data.longest, data.longest_text)),
            checks.missing_for_isolation(recipe),
            recipe.model.path,
        )
    loaded = quantized.as_loaded(recipe.model, config)
    known = outline if isinstance(outline, Outline) else None
    facts = ModelFacts.from_config(config, known)
    precision = choose_precision(recipe.train.precision, hardware)
    frozen_dtype = _frozen_dtype(recipe.model, precision)
    gpu = recipe.scale.gpu if isinstance(recipe.scale.gpu, bool) else hardware.device == "cuda"
    checks.check(recipe, data, facts, hardware, {**config, **(config.get("text_config") or {})})

    warmup = schedule.warmup(recipe.optim, data.steps)
    length = max(1, data.longest_row)
    embeddings = embedding_bytes(recipe.method, data, facts)
    sizes = deepspeed.zero_sizes(recipe.scale.strategy, recipe, facts)

    def memory(tokens: int, strategy: Strategy) -> Memory:
        rows = tokens // length if recipe.model.beacon else 1  # with beacons, a row is one document
        found = forecast(
            facts,
            loaded,
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
            unquantized=0 if loaded is recipe.model else quantized.plain_parameters(config, facts),
            router_losses=experts.router_losses(config, recipe.model),
        )
        return dataclasses.replace(found, embeddings=embeddings)

    def tokens_of(micro: int) -> int:
        """Maximum number of tokens of a micro-batch of `micro` rows, of which the data may have fewer."""
        return min(micro, max(1, data.max_rows)) * length

    min_tokens = max(tokens_of(recipe.train.micro_batch_size or 1), data.longest_text)
    strategy, reason = choose(
        recipe.model_copy(update={"model": loaded}),
        functools.partial(memory, min_tokens),
        hardware,
        precision=precision,
        usable=USABLE_MEMORY,
    )
    quantized.check_strategy(recipe.model, config, strategy)
    if precision not in strategy.precisions:
        raise ModelError(
            f"train.precision: auto selects {precision} on these GPUs, but scale.strategy {strategy.name} supports only "
            f"{' and '.join(strategy.precisions)}",
            hint="set train.precision: fp32, or scale.strategy: ddp",
        )

    groups = recipe.scale.max_workers // recipe.scale.sequence_parallel
    per_worker = -(-data.rows_per_batch // groups)
    micro = recipe.train.micro_batch_size
    usable_bytes = USABLE_MEMORY * hardware.memory_bytes
    chunked = chunks(
        recipe.method,
        data,
        lambda tokens: memory(tokens, strategy),
        max_tokens=MICRO_BATCH_TOKENS[hardware.device],
        usable_bytes=usable_bytes,
        previous=chunk_tokens,
    )
    if micro is None:
        micro = per_worker
        limit = max(1, MICRO_BATCH_TOKENS[hardware.device] * recipe.scale.sequence_parallel // length)
        while micro > limit or (micro > 1 and memory(tokens_of(micro), strategy).peak > usable_bytes):
            micro = -(-micro // 2)
    micro_batches = -(-data.rows_per_batch // micro)
    return Plan(
        run_url=run_url,
        tokens_url=data.tokens_url,
        fingerprint=data.fingerprint,
        train_fingerprint=data.train_fingerprint,
        order_version=data.order_version,
        model=_with_absolute_path(recipe.model),
        method=recipe.method,
        optim=recipe.optim,
        save=recipe.save,
        evaluate=recipe.evaluate,
        divergence=recipe.train.divergence,
        early_stopping=recipe.train.early_stopping,
        pose=pose.planned(recipe, facts),
        workers=recipe.scale.max_workers,
        gpu=gpu,
        strategy=strategy,
        strategy_reason=reason,
        deepspeed=deepspeed.settings(strategy, recipe, facts, precision=precision, micro=micro),
        precision=precision,
        frozen_dtype=frozen_dtype,
        quantization=loaded.quantize.type if loaded.quantize else None,
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
        smaller_than_batch=dict(data.smaller_than_batch),
        chunk_size=chunked.size,
        chunk_tokens=chunked.max_tokens,
        resume_from=resume_from,
        steps=data.steps,
        steps_per_epoch=data.steps_per_epoch,
        token_budget=recipe.train.tokens,
        run_tokens=data.run_tokens,
        warmup_steps=warmup,
        decay_steps=schedule.decay(recipe.optim, data.steps, warmup),
        tokens_per_epoch=data.tokens,
        source_tokens=tuple(
            SourceTokens(source.path, tokens)
            for source, tokens in zip(recipe.data.train, data.source_tokens, strict=False)
        ),
        supervised_tokens_per_epoch=data.supervised_tokens,
        trained_parameters=trained_parameters(facts, recipe.model),
        total_parameters=facts.linear_parameters + facts.embedding_parameters,
        positions=facts.positions,
        base_positions=ModelFacts.from_config(model_config).positions,
        active_parameters=facts.active_parameters,
        parameters_estimated=outline.reason if isinstance(outline, NoOutline) else None,
        parameter_groups=known.groups if known else (),
        base_dropout=dict(known.dropout) if known else {},
        memory=memory(max(tokens_of(micro), chunked.longest), strategy),
    )


def reference_model(method: Method, model: Model, strategy: Strategy) -> Reference | None:
    """The source of the reference log-probabilities. None if the method has no reference model."""
    requested = method.reference_source
    if requested is None:
        return None
    if requested == "auto":
        if model.adapter is not None:
            return "adapter_off"
        return "precomputed" if strategy.shards_optimizer else "copy"
    return requested


def choose_precision(requested: str, hardware: Hardware) -> Precision:
    """The requested precision. For `auto`: bf16 if the hardware has it, else fp16 on a GPU, else fp32."""
    if requested == "auto":
        return "bf16" if hardware.bf16 else "fp16" if hardware.device == "cuda" else "fp32"
    return requested  # type: ignore[return-value]


def _frozen_dtype(model: Model, precision: Precision) -> Literal["float32", "bfloat16", "float16"]:
    if model.dtype != "auto":
        return model.dtype
    return {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]  # type: ignore[return-value]


def _with_absolute_path(model: Model) -> Model:
    """The model section with an absolute path: workers run in other folders, and the adapter's config names the path."""
    local = Path(model.path).expanduser()
    return model.model_copy(update={"path": str(local.resolve())}) if local.exists() else model
