"""The rules of `scale.strategy`: what a strategy that shares something out cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tailor.spec.rules.keys import Finding, Keys

SHARDED_OPTIMIZERS = ("adamw", "sgd")
"""Those that change each element by itself, in PyTorch's own code."""

_TYPES = {"fp32": "float32", "bf16": "bfloat16"}


def findings(keys: Keys) -> Iterator[Finding]:
    """Every key that the strategy, or its stage, rules out."""
    yield from _offload(keys)
    yield from _sharing(keys)


def idle(keys: Keys) -> Iterator[Finding]:
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


def _sharing(keys: Keys) -> Iterator[Finding]:
    """What a strategy that shares something out over the workers cannot do."""
    name, stage = strategy_name(keys), keys("scale.strategy.stage")
    if name not in ("fsdp", "deepspeed"):
        return
    shown = f"conflicts with scale.strategy {name}" + (f" stage {stage}" if stage else "")
    optimizer = keys("optim.optimizer")
    if optimizer is not None and optimizer not in SHARDED_OPTIMIZERS:
        yield (
            "optim.optimizer",
            (
                f"{shown}, which gives each worker a part of the optimizer's state: {optimizer} needs whole weights "
                f"or kernels of its own; take {' or '.join(SHARDED_OPTIMIZERS)}"
            ),
        )
    if keys("method.reference") == "copy":
        yield (
            "method.reference",
            f"{shown}: a frozen copy would be whole on every worker; take precomputed",
        )
    if keys("method.name") == "kto" and keys.absent("model.adapter"):
        yield (
            "method.name",
            (
                f"{shown}: kto without an adapter compares with a frozen copy, which would be whole on every worker; "
                "set model.adapter"
            ),
        )
    if keys("train.precision") == "fp16":
        yield "train.precision", f"{shown}, which computes in bf16 or fp32"
    if keys("train.compile"):
        yield "train.compile", f"{shown}, whose hooks would break the compiled graph at every layer"
    dtype, precision = keys("model.dtype"), keys("train.precision")
    if stage in (2, 3) and dtype not in (None, "auto") and dtype != _TYPES.get(precision):
        yield (
            "model.dtype",
            f"{shown}, which holds all weights in the type of train.precision; leave it at auto",
        )
    if name == "deepspeed" and stage != 3:
        return
    if not keys.absent("model.quantize"):
        yield (
            "model.quantize",
            (
                f"{shown}, which cuts every weight into parts: bitsandbytes' packed weights cannot be cut; "
                "take ddp or ZeRO stage 1 or 2"
            ),
        )
    if keys("model.attention") == "flash_attention_2":
        yield (
            "model.attention",
            f"{shown}, under which the attention is proven on a CPU, before any weight is on a GPU; leave it at auto",
        )
    if keys("evaluate.generation") is not None:
        yield (
            "evaluate.generation",
            (
                f"{shown}: every token of an answer would gather all weights from all workers; "
                "generate from the finished model"
            ),
        )
    if keys("evaluate.retrieval") is not None:
        yield (
            "evaluate.retrieval",
            f"{shown}: workers that embed unlike numbers of texts would wait for each other; search with evaluate.final",
        )


def strategy_name(keys: Keys) -> Any:
    """`auto`, `ddp`, `fsdp` or `deepspeed`, however it is written."""
    value = keys("scale.strategy")
    return keys("scale.strategy.name") if isinstance(value, dict) else value
