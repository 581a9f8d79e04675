"""The rules of long sequences: workers that hold them together, and what is done for memory."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.methods.registry import token_methods
from tailor.spec.rules.keys import Conflict, Finding, Keys


def conflicts(keys: Keys) -> Iterator[Conflict]:
    """Pairs of keys that do not go together, and why."""
    parts = keys("scale.sequence_parallel")
    if isinstance(parts, int) and parts > 1:
        yield from _cut(keys, parts)
    if keys("train.activation_offloading"):
        if keys("scale.gpu") is False:
            yield "train.activation_offloading", "scale.gpu", "it moves what a GPU holds to host memory"
        if keys("train.compile"):
            yield (
                "train.activation_offloading",
                "train.compile",
                "its hooks would break the compiled graph at every layer",
            )
    if keys("train.tiled_mlp") and keys("train.compile"):
        yield "train.tiled_mlp", "train.compile", "its tiles would break the compiled graph at every layer"


def _cut(keys: Keys, parts: int) -> Iterator[Conflict]:
    key = "scale.sequence_parallel"
    workers = "scale.workers"
    together = f"{parts} workers hold a sequence together"
    for name in (workers,) if isinstance(keys(workers), int) else (f"{workers}.min", f"{workers}.max"):
        number = keys(name)
        if isinstance(number, int) and number % parts:
            yield key, name, f"{together}, and {number} is no multiple of that"
    if keys.absent(workers):
        yield key, workers, f"{together}, and there is one (the default)"
    method = keys.method
    if method is not None and not method.token_loss:
        only = ", ".join(token_methods())
        yield (
            key,
            "method.name",
            f"{method.name} compares whole texts, whose tokens would stand on several workers; it is for {only}",
        )
    if keys("train.compile"):
        yield key, "train.compile", "compilation takes padded rows, and only streams of documents are cut"
    attention = keys("model.attention")
    if attention not in (None, "auto"):
        yield (
            key,
            "model.attention",
            f"it has an attention of its own, which {attention} is not; leave it at auto",
        )


def findings(keys: Keys) -> Iterator[Finding]:
    """Keys that say nothing without another."""
    if keys("train.activation_offloading") and keys.absent("train.activation_checkpointing"):
        yield (
            "train.activation_offloading",
            "needs train.activation_checkpointing: what that keeps of each layer is what is moved",
        )
