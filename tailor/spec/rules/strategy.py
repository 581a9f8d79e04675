"""Rules of `scale.strategy`: settings that a sharding strategy does not support."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tailor.spec.adapter import REPLACING
from tailor.spec.rules.keys import Conflict, Finding, Keys
from tailor.spec.scale import STRATEGIES
from tailor.spec.strategy import Strategy

SHARDED_OPTIMIZERS = ("adamw", "sgd")
"""Optimizers that work on shards: PyTorch's own implementations that update each element independently."""

_TYPES = {"fp32": "float32", "bf16": "bfloat16"}


def findings(keys: Keys) -> Iterator[Finding]:
    """Every key that the strategy or its stage does not support."""
    yield from _offload(keys)
    if (strategy := _named_strategy(keys)) is not None:
        for found in exclusions(keys, strategy):
            if not found.conflict:
                yield found.key, f"conflicts with scale.strategy {strategy.label}{found.why}"


def conflicts(keys: Keys) -> Iterator[Conflict]:
    """The unsupported keys that are reported as conflicts with `scale.strategy`."""
    if (strategy := _named_strategy(keys)) is not None:
        for found in exclusions(keys, strategy):
            if found.conflict:
                yield found.key, "scale.strategy", found.why


def unused(keys: Keys) -> Iterator[Finding]:
    """Keys of the strategy that have no effect."""
    devices = [keys(f"scale.strategy.{name}") for name in ("offload_optimizer", "offload_parameters")]
    if keys("scale.strategy.nvme_path") is not None and "nvme" not in devices:
        yield (
            "scale.strategy.nvme_path",
            "has no effect without offload_optimizer: nvme or offload_parameters: nvme",
        )


def _offload(keys: Keys) -> Iterator[Finding]:
    stage = keys("scale.strategy.stage")
    for key in ("offload_optimizer", "offload_parameters"):
        value = keys(f"scale.strategy.{key}")
        if stage in (1, 2) and (value == "nvme" or (value and key == "offload_parameters")):
            yield f"scale.strategy.{key}", f"{value} needs stage: 3, but the stage is {stage}"
        if value == "nvme" and keys.absent("scale.strategy.nvme_path"):
            yield (
                f"scale.strategy.{key}",
                "nvme needs scale.strategy.nvme_path: a folder on each worker's disk",
            )


@dataclass(frozen=True)
class Exclusion:
    """A key that a strategy does not support."""

    key: str
    setting: str
    """The key with its value, for messages."""
    why: str
    conflict: bool = False
    """Reported as a conflict of the key and `scale.strategy`, not as a finding of the key."""


def exclusions(keys: Keys, strategy: Strategy) -> Iterator[Exclusion]:
    """Every key that the strategy does not support.

    The plan calls this for each candidate when the strategy is `auto`.
    """
    if strategy.shards_weights and not keys.absent("model.quantize"):
        yield Exclusion(
            "model.quantize",
            "model.quantize",
            ", which shards every weight: quantized weights (bitsandbytes) cannot be sharded; "
            "use ddp, or deepspeed stage 1 or 2",
        )
    if strategy.shards_optimizer:
        yield from _without_sharding(keys, strategy)
    if strategy.shards_weights:
        yield from _without_sharded_weights(keys)
    precision = keys("train.precision")
    if precision not in (None, "auto", *strategy.precisions):
        computes = " or ".join(strategy.precisions)
        yield Exclusion("train.precision", f"{precision} arithmetic", f", which supports only {computes}")
    if strategy.casts_weights and keys("model.dtype") not in (None, "auto", _TYPES.get(precision)):
        dtype = f"model.dtype: {keys('model.dtype')}"
        yield Exclusion(
            "model.dtype",
            dtype,
            ", which stores all weights in the type of train.precision; set model.dtype: auto",
        )


def _without_sharding(keys: Keys, strategy: Strategy) -> Iterator[Exclusion]:
    if keys("model.beacon") is not None:
        why = f"beacons are tested only with ddp, and {strategy.name} shards weights or optimizer state; use ddp"
        yield Exclusion("model.beacon", "model.beacon", why, conflict=True)
    if keys("model.add_tokens"):
        why = f"new tokens are tested only with ddp, and {strategy.name} shards weights or optimizer state; use ddp"
        yield Exclusion("model.add_tokens", "model.add_tokens", why, conflict=True)
    kind = keys("model.adapter.type")
    if kind not in (None, "lora"):
        why = f"adapters of the type {kind} are tested only with ddp, and {strategy.name} shards weights or optimizer state; use ddp"
        yield Exclusion("model.adapter.type", f"model.adapter.type: {kind}", why, conflict=True)
    init = keys("model.adapter.init")
    if init in (*REPLACING, "loftq"):
        why = f"the initial matrices of {init} are tested only with ddp, and {strategy.name} shards weights or optimizer state; use ddp"
        yield Exclusion("model.adapter.init", f"model.adapter.init: {init}", why, conflict=True)
    if (keys("method.kept_chunks") or 1) > 1:
        why = f"{strategy.name} expects each backward pass right after its forward pass; use ddp"
        yield Exclusion("method.kept_chunks", "method.kept_chunks", why, conflict=True)
    optimizer = keys("optim.optimizer")
    if optimizer is not None and optimizer not in SHARDED_OPTIMIZERS:
        yield Exclusion(
            "optim.optimizer",
            f"optim.optimizer: {optimizer}",
            f", which shards the optimizer state: {optimizer} needs unsharded weights or its own kernels; "
            f"use {' or '.join(SHARDED_OPTIMIZERS)}",
        )
    if keys("train.compile"):
        yield Exclusion(
            "train.compile",
            "train.compile",
            ", whose hooks break the compiled graph at every layer; remove train.compile",
        )
    if keys("method.reference") == "copy":
        yield Exclusion(
            "method.reference",
            "method.reference: copy",
            ": every worker would hold a complete frozen copy; use precomputed",
        )
    method = keys.method
    if method is not None and not method.can_precompute_reference and keys.absent("model.adapter"):
        yield Exclusion(
            "method.name",
            f"method.name: {method.name} without an adapter",
            f": without an adapter, {method.name} needs a complete frozen copy of the model on every worker; "
            "set model.adapter",
        )


def _without_sharded_weights(keys: Keys) -> Iterator[Exclusion]:
    if keys("evaluate.retrieval") is not None:
        yield Exclusion(
            "evaluate.retrieval",
            "evaluate.retrieval",
            ": its workers embed different numbers of texts and would deadlock; use a retrieval task in evaluate.final",
        )
    if keys("evaluate.generation") is not None:
        yield Exclusion(
            "evaluate.generation",
            "evaluate.generation",
            ": every generated token would gather all weights from all workers; "
            "generate with evaluate.final or tailor evaluate after training",
        )
    if keys("model.attention") == "flash_attention_2":
        yield Exclusion(
            "model.attention",
            "model.attention: flash_attention_2",
            ", which checks the attention on the CPU before the weights are on a GPU; set model.attention: auto",
        )


def _named_strategy(keys: Keys) -> Strategy | None:
    """The strategy that the recipe names, with those of its keys that are right. None for `auto` and unknown names."""
    name = strategy_name(keys)
    if not isinstance(name, str) or name not in STRATEGIES:
        return None
    kind = STRATEGIES.get(name)
    return kind.model_construct(
        **{key: keys(f"scale.strategy.{key}") for key in kind.model_fields} | {"name": name}
    )


def strategy_name(keys: Keys) -> Any:
    """The name of the strategy, whether it is written as text or as a section."""
    value = keys("scale.strategy")
    return keys("scale.strategy.name") if isinstance(value, dict) else value
