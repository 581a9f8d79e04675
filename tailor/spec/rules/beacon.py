"""Rules between `model.beacon` and the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.data import Data
from tailor.spec.methods.registry import token_methods
from tailor.spec.model import Beacon
from tailor.spec.rules import suite
from tailor.spec.rules.keys import Finding, Keys

KEY = "model.beacon"


def conflicts(keys: Keys) -> Iterator[tuple[str, str, str]]:
    """Settings that do not work with activation beacons."""
    if keys(KEY) is None:
        return
    if keys("model.adapter") is not None:
        yield (
            KEY,
            "model.adapter",
            "beacons are trained on a frozen base model, which an adapter would change; remove model.adapter",
        )
    if keys("model.add_tokens"):
        yield (
            KEY,
            "model.add_tokens",
            "beacons are trained on a frozen base model, whose new tokens would not learn; remove model.add_tokens",
        )
    if keys("model.attention") == "flash_attention_2":
        yield KEY, "model.attention", "beacons are tested only with sdpa and eager; use one of them"
    if keys.method is not None and not keys.method.token_loss:
        which = " or ".join(token_methods())
        yield KEY, "method.name", f"beacons are trained with a next-token loss; use {which}"
    if (rope := keys("model.rope.name")) in ("dynamic", "longrope"):
        why = f"the frequencies of {rope} change with the sequence length, but compressed keys keep those of an earlier length; use another rope type"
        yield KEY, "model.rope", why
    if (parts := keys("scale.sequence_parallel")) is not None and parts != 1:
        yield (
            KEY,
            "scale.sequence_parallel",
            "beacons do not support sequence parallelism: one worker must read all windows in order; set scale.sequence_parallel: 1",
        )
    every = keys("train.activation_checkpointing")
    if every is not None and not isinstance(every, bool) and every > 1:
        yield (
            KEY,
            "train.activation_checkpointing",
            "beacons need checkpointing of all layers or none; write true or false",
        )
    for key in ("train.activation_offloading", "train.tiled_mlp", "train.compile"):
        if keys(key):
            yield (
                KEY,
                key,
                f"it is not supported with beacons, which read a document window by window; remove {key}",
            )
    if keys("export.push_to_hub") is not None:
        yield KEY, "export.push_to_hub", "other tools cannot read beacons; remove export.push_to_hub"
    for why in dict.fromkeys(
        task.ignores_beacons for _, task in suite.named_tasks(keys, "evaluate.final.") if task.ignores_beacons
    ):
        yield KEY, "evaluate.final.tasks", why
    length = keys("data.max_length") or Data.model_fields["max_length"].default
    window = _window(keys)
    if window and not keys.is_wrong("data.max_length") and length <= window:
        yield (
            f"{KEY}.window",
            "data.max_length",
            f"examples of {length} tokens fit into one window of {window}, so no beacon would be trained; raise data.max_length",
        )


def findings(keys: Keys) -> Iterator[Finding]:
    """Settings that beacons need, and numbers that contradict each other."""
    if keys(KEY) is None:
        return
    joined = keys.method is not None and keys.method.joins
    if not joined and not keys.is_wrong("data.pack") and keys("data.pack") is not False:
        yield (
            "data.pack",
            "must be false with model.beacon: packed documents would share a window",
        )
    if keys("model.quantize") is not None and keys.absent(f"{KEY}.rank"):
        yield f"{KEY}.rank", "is required with model.quantize: quantized projections cannot be copied"
    yield from _ratios(keys)
    window, sink = _window(keys), keys(f"{KEY}.sink")
    if window and sink and sink >= window:
        yield f"{KEY}.sink", f"{sink} tokens must be fewer than the window of {window}"
    names = keys(f"{KEY}.projections")
    if isinstance(names, list) and len(set(names)) < len(names):
        yield f"{KEY}.projections", f"has {next(n for n in names if names.count(n) > 1)} twice; remove one"


def unused(keys: Keys) -> Iterator[Finding]:
    """Keys that choose between ratios, when there is only one ratio."""
    ratios = keys(f"{KEY}.ratios")
    if isinstance(ratios, list) and len(ratios) == 1:
        for key in (f"{KEY}.draw", f"{KEY}.memory"):
            if keys(key) is not None:
                yield key, "has no effect with a single ratio; remove it"


def _ratios(keys: Keys) -> Iterator[Finding]:
    ratios, window = keys(f"{KEY}.ratios"), _window(keys)
    if not isinstance(ratios, list) or not ratios:
        return
    if any(ratios.count(ratio) > 1 for ratio in ratios):
        yield f"{KEY}.ratios", f"has {next(r for r in ratios if ratios.count(r) > 1)} twice; remove one"
    elif any(ratio < 0 for ratio in ratios):
        yield (
            f"{KEY}.ratios",
            "a ratio must not be negative; it is the number of tokens per beacon, or 0 for no compression",
        )
    elif not any(ratios):
        yield (
            f"{KEY}.ratios",
            "ratio 0 alone trains nothing: without compression there are no beacons; add a ratio such as 8",
        )
    elif window and (odd := [ratio for ratio in ratios if ratio and window % ratio]):
        yield (
            f"{KEY}.ratios",
            f"ratio {odd[0]} does not divide the window of {window}: the last {window % odd[0]} tokens would have no beacon",
        )


def _window(keys: Keys) -> int | None:
    if keys.is_wrong(f"{KEY}.window"):
        return None
    window: int = keys(f"{KEY}.window") or Beacon.model_fields["window"].default
    return window
