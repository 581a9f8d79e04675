"""The rules between the keys of `model.beacon` and the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.data import Data
from tailor.spec.methods.registry import token_methods
from tailor.spec.model import Beacon
from tailor.spec.rules import suite
from tailor.spec.rules.keys import Finding, Keys

KEY = "model.beacon"


def conflicts(keys: Keys) -> Iterator[tuple[str, str, str]]:
    """What beacons do not go together with."""
    if keys(KEY) is None:
        return
    if keys("model.adapter") is not None:
        yield (
            KEY,
            "model.adapter",
            "beacons remember what a frozen base reads, and an adapter would change it",
        )
    if keys("model.attention") == "flash_attention_2":
        yield KEY, "model.attention", "beacons are proven with sdpa and eager"
    if keys.method is not None and not keys.method.token_loss:
        which = " and ".join(token_methods())
        yield KEY, "method.name", f"beacons learn from next tokens: they go with {which}"
    if (rope := keys("model.rope.name")) in ("dynamic", "longrope"):
        why = f"{rope} changes with the length of what is read, and keys in the memory were turned by an earlier one"
        yield KEY, "model.rope", why
    if (parts := keys("scale.sequence_parallel")) is not None and parts != 1:
        yield KEY, "scale.sequence_parallel", "windows are read one after the other, by one worker"
    every = keys("train.activation_checkpointing")
    if every is not None and not isinstance(every, bool) and every > 1:
        yield KEY, "train.activation_checkpointing", "every layer of a window is computed again, or none"
    for key in ("train.activation_offloading", "train.tiled_mlp"):
        if keys(key):
            yield KEY, key, "it is proven on models that read a sequence at once"
    if keys("train.compile"):
        yield KEY, "train.compile", "every window has another form, and each would be compiled"
    if keys("export.push_to_hub") is not None:
        yield KEY, "export.push_to_hub", "no other tool reads beacons"
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
            f"an example of {length} tokens fits into one window of {window}, and no beacon would be trained",
        )


def findings(keys: Keys) -> Iterator[Finding]:
    """What beacons need, and numbers that do not fit each other."""
    if keys(KEY) is None:
        return
    joined = keys.method is not None and keys.method.joins
    if not joined and not keys.is_wrong("data.pack") and keys("data.pack") is not False:
        yield (
            "data.pack",
            "must be false with model.beacon: a memory is one document's, and documents in a pack would share windows",
        )
    if keys("model.quantize") is not None and keys.absent(f"{KEY}.rank"):
        yield f"{KEY}.rank", "is needed beside model.quantize: quantized projections cannot be copied"
    yield from _ratios(keys)
    window, sink = _window(keys), keys(f"{KEY}.sink")
    if window and sink and sink >= window:
        yield f"{KEY}.sink", f"{sink} tokens are no part of a window of {window}"
    names = keys(f"{KEY}.projections")
    if isinstance(names, list) and len(set(names)) < len(names):
        yield f"{KEY}.projections", f"names {next(n for n in names if names.count(n) > 1)} twice"


def unused(keys: Keys) -> Iterator[Finding]:
    """Keys that choose between ratios where there is one."""
    ratios = keys(f"{KEY}.ratios")
    if isinstance(ratios, list) and len(ratios) == 1:
        for key in (f"{KEY}.draw", f"{KEY}.memory"):
            if keys(key) is not None:
                yield key, "has no effect with one ratio: there is nothing to choose"


def _ratios(keys: Keys) -> Iterator[Finding]:
    ratios, window = keys(f"{KEY}.ratios"), _window(keys)
    if not isinstance(ratios, list) or not ratios:
        return
    if any(ratios.count(ratio) > 1 for ratio in ratios):
        yield f"{KEY}.ratios", f"names {next(r for r in ratios if ratios.count(r) > 1)} twice"
    elif any(ratio < 0 for ratio in ratios):
        yield (
            f"{KEY}.ratios",
            "a beacon stands after so many tokens; 0 keeps all keys, and less means nothing",
        )
    elif not any(ratios):
        yield f"{KEY}.ratios", "0 alone trains nothing: it keeps all keys and has no beacons"
    elif window and (odd := [ratio for ratio in ratios if ratio and window % ratio]):
        yield (
            f"{KEY}.ratios",
            f"{odd[0]} does not divide the window of {window}: its last {window % odd[0]} tokens would have no beacon",
        )


def _window(keys: Keys) -> int | None:
    if keys.is_wrong(f"{KEY}.window"):
        return None
    window: int = keys(f"{KEY}.window") or Beacon.model_fields["window"].default
    return window
