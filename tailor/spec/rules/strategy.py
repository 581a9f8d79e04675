"""The rules of `scale.strategy`: what a strategy that shares something out cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tailor.spec.rules.keys import Conflict, Finding, Keys
from tailor.spec.scale import STRATEGIES
from tailor.spec.strategy import Strategy

SHARDED_OPTIMIZERS = ("adamw", "sgd")
"""Those that change each element by itself, in PyTorch's own code."""

_TYPES = {"fp32": "float32", "bf16": "bfloat16"}


def findings(keys: Keys) -> Iterator[Finding]:
    """Every key that the strategy, or its stage, rules out."""
    yield from _offload(keys)
    if (strategy := _meant(keys)) is not None:
        for found in exclusions(keys, strategy):
            if not found.conflict:
                yield found.key, f"conflicts with scale.strategy {strategy.label}{found.why}"


def conflicts(keys: Keys) -> Iterator[Conflict]:
    """The exclusions that name the strategy as the other key."""
    if (strategy := _meant(keys)) is not None:
        for found in exclusions(keys, strategy):
            if found.conflict:
                yield found.key, "scale.strategy", found.why


def unused(keys: Keys) -> Iterator[Finding]:
    """Keys of the strategy that have no effect."""
    devices = [keys(f"scale.strategy.{name}") for name in ("offload_optimizer", "offload_parameters")]
    if keys("scale.strategy.nvme_path") is not None and "nvme" not in devices:
        yield (
            "scale.strategy.nvme_path",
            "has no effect without offload_optimizer or offload_parameters: nvme",
        )


def _offload(keys: Keys) -> Iterator[Finding]:
    stage = keys("scale.strategy.stage")
    for key in ("offload_optimizer", "offload_parameters"):
        value = keys(f"scale.strategy.{key}")
        if stage in (1, 2) and (value == "nvme" or (value and key == "offload_parameters")):
            yield f"scale.strategy.{key}", f"{value} needs stage 3; this is stage {stage}"
        if value == "nvme" and keys.absent("scale.strategy.nvme_path"):
            yield (
                f"scale.strategy.{key}",
                "nvme needs scale.strategy.nvme_path: a folder on each worker's disk",
            )


@dataclass(frozen=True)
class Exclusion:
    """A key that a strategy rules out."""

    key: str
    said: str
    """The key with its value, in a few words."""
    why: str
    conflict: bool = False
    """Reported as a pair of the key and `scale.strategy`, and not at the key alone."""


def exclusions(keys: Keys, strategy: Strategy) -> Iterator[Exclusion]:
    """Every key beside which the strategy cannot be used. The plan asks this, too, where the strategy is `auto`."""
    if strategy.shards_weights and not keys.absent("model.quantize"):
        yield Exclusion(
            "model.quantize",
            "model.quantize",
            ", which cuts every weight into parts: bitsandbytes' packed weights cannot be cut; "
            "take ddp or ZeRO stage 1 or 2",
        )
    if strategy.shards_optimizer:
        yield from _without_sharding(keys, strategy)
    if strategy.shards_weights:
        yield from _without_sharded_weights(keys)
    precision = keys("train.precision")
    if precision not in (None, "auto", *strategy.precisions):
        computes = " or ".join(strategy.precisions)
        yield Exclusion("train.precision", f"{precision} arithmetic", f", which computes in {computes}")
    if strategy.casts_weights and keys("model.dtype") not in (None, "auto", _TYPES.get(precision)):
        dtype = f"model.dtype: {keys('model.dtype')}"
        yield Exclusion(
            "model.dtype",
            dtype,
            ", which holds all weights in the type of train.precision; leave it at auto",
        )


def _without_sharding(keys: Keys, strategy: Strategy) -> Iterator[Exclusion]:
    if keys("model.beacon") is not None:
        why = f"beacons are proven with ddp, and {strategy.name} shares weights or their states out"
        yield Exclusion("model.beacon", "model.beacon", why, conflict=True)
    optimizer = keys("optim.optimizer")
    if optimizer is not None and optimizer not in SHARDED_OPTIMIZERS:
        yield Exclusion(
            "optim.optimizer",
            f"optim.optimizer: {optimizer}",
            f", which gives each worker a part of the optimizer's state: {optimizer} needs whole weights "
            f"or kernels of its own; take {' or '.join(SHARDED_OPTIMIZERS)}",
        )
    if keys("train.compile"):
        yield Exclusion(
            "train.compile", "train.compile", ", whose hooks would break the compiled graph at every layer"
        )
    if keys("method.reference") == "copy":
        yield Exclusion(
            "method.reference",
            "method.reference: copy",
            ": a frozen copy would be whole on every worker; take precomputed",
        )
    method = keys.method
    if method is not None and not method.can_precompute_reference and keys.absent("model.adapter"):
        yield Exclusion(
            "method.name",
            f"method.name: {method.name} without an adapter",
            f": {method.name} without an adapter compares with a frozen copy, which would be whole on every worker; "
            "set model.adapter",
        )


def _without_sharded_weights(keys: Keys) -> Iterator[Exclusion]:
    if keys("evaluate.retrieval") is not None:
        yield Exclusion(
            "evaluate.retrieval",
            "evaluate.retrieval",
            ": workers that embed unlike numbers of texts would wait for each other; search with evaluate.final",
        )
    if keys("evaluate.generation") is not None:
        yield Exclusion(
            "evaluate.generation",
            "evaluate.generation",
            ": every token of an answer would gather all weights from all workers; "
            "generate from the finished model",
        )
    if keys("model.attention") == "flash_attention_2":
        yield Exclusion(
            "model.attention",
            "model.attention: flash_attention_2",
            ", under which the attention is proven on a CPU, before any weight is on a GPU; leave it at auto",
        )


def _meant(keys: Keys) -> Strategy | None:
    """The strategy that the recipe names, as far as its keys are right; None for `auto` and unknown names."""
    name = strategy_name(keys)
    if not isinstance(name, str) or name not in STRATEGIES:
        return None
    kind = STRATEGIES.get(name)
    return kind.model_construct(
        **{key: keys(f"scale.strategy.{key}") for key in kind.model_fields} | {"name": name}
    )


def strategy_name(keys: Keys) -> Any:
    """`auto`, `ddp`, `fsdp` or `deepspeed`, however it is written."""
    value = keys("scale.strategy")
    return keys("scale.strategy.name") if isinstance(value, dict) else value
