"""Rules of long sequences: sequence parallelism, activation offloading and the tiled MLP."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.methods.registry import token_methods
from tailor.spec.rules.keys import Conflict, Finding, Keys


def conflicts(keys: Keys) -> Iterator[Conflict]:
    """Pairs of keys that cannot be used together."""
    parts = keys("scale.sequence_parallel")
    if isinstance(parts, int) and parts > 1:
        yield from _sequence_parallel(keys, parts)
    if keys("train.activation_offloading"):
        if keys("scale.gpu") is False:
            yield (
                "train.activation_offloading",
                "scale.gpu",
                "without a GPU there is nothing to move to host memory; remove train.activation_offloading",
            )
        if keys("train.compile"):
            yield (
                "train.activation_offloading",
                "train.compile",
                "offloading is not tested with compiled layers; remove one of the keys",
            )
    if keys("train.tiled_mlp") and keys("train.compile"):
        yield (
            "train.tiled_mlp",
            "train.compile",
            "the number of tiles would be compiled into each layer; remove one of the keys",
        )


def _sequence_parallel(keys: Keys, parts: int) -> Iterator[Conflict]:
    key = "scale.sequence_parallel"
    workers = "scale.workers"
    group = f"{parts} workers share each sequence"
    for name in (workers,) if isinstance(keys(workers), int) else (f"{workers}.min", f"{workers}.max"):
        number = keys(name)
        if isinstance(number, int) and number % parts:
            yield key, name, f"{group}, but {number} is not a multiple of {parts}; change {name}"
    if keys.absent(workers):
        yield (
            key,
            workers,
            f"{group}, but the default is 1 worker; set scale.workers to a multiple of {parts}",
        )
    method = keys.method
    if method is not None and not method.token_loss:
        only = ", ".join(token_methods())
        yield (
            key,
            "method.name",
            f"{method.name} compares whole texts, which must not be split over workers; it works with {only}",
        )
    attention = keys("model.attention")
    if attention not in (None, "auto"):
        yield (
            key,
            "model.attention",
            f"sequence parallelism has its own attention and cannot use {attention}; set model.attention: auto",
        )


def findings(keys: Keys) -> Iterator[Finding]:
    """Keys that need another key."""
    if keys("train.activation_offloading") and keys.absent("train.activation_checkpointing"):
        yield (
            "train.activation_offloading",
            "needs train.activation_checkpointing: it moves the layer inputs that checkpointing keeps",
        )
