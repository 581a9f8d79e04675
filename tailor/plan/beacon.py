"""Activation beacons in numbers: which ratio a window takes, what the memory holds, which models they are right on."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from tailor.plan import beacon
from tailor.plan.facts import ModelFacts
from tailor.spec.model import Beacon

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Types of models whose attention was compared with a reimplementation."""
FIXED_ROPE = ("default", "linear", "yarn", "llama3")
"""Position encodings under which a key may be turned from one position to another."""


def windows_of(tokens: int, window: int) -> int:
    """Windows of a document of `tokens` tokens; the last one may be shorter."""
    return -(-tokens // window)


def kept(spec: Beacon, ratio: int) -> int:
    """Keys that the memory takes from a full window: its beacons, or all of its tokens for ratio 0."""
    return spec.window // ratio if ratio else spec.window


def adapted(spec: Beacon, windows: int, limit: int | None = None, *, at_most: int | None = None) -> int:
    """The finest ratio with which the memory of a document of so many windows stays within `spec.memory`.

    The coarsest where none does. `limit`: the model's positions, which no ratio may pass either, also when the
    document has grown to `at_most` windows.
    """
    most = spec.memory or spec.window
    fits = (
        ratio
        for ratio in _fine_first(spec)
        if (windows - 1) * kept(spec, ratio) <= most
        and _within(spec, (ratio,) * ((at_most or windows) - 1), limit)
    )
    return next(fits, coarsest(spec))


def coarsest(spec: Beacon) -> int:
    """The ratio that keeps least."""
    return _fine_first(spec)[-1]


def ratios(
    spec: Beacon, windows: int, limit: int | None = None, *, seed: int = 0, step: int | None = None
) -> tuple[int, ...]:
    """The ratio of each window of a document but the last, which has no beacons.

    A training step draws as the recipe says, among the ratios with which the document stays within the model's
    positions (`limit`). Documents of a step of one number of windows take the same draw, so that it depends on neither
    workers nor micro-batches. Without a step (evaluation, generation) the document's length decides.
    """
    if step is None or spec.draw == "adapt":
        return (adapted(spec, windows, limit),) * (windows - 1)
    generator = random.Random(f"beacon {seed} {step}")
    if spec.draw == "mixed" and generator.random() < 0.5:
        return (adapted(spec, windows, limit),) * (windows - 1)
    given: tuple[int, ...] = ()
    for left in range(windows - 2, -1, -1):
        rest = (coarsest(spec),) * left
        possible = [ratio for ratio in spec.ratios if _within(spec, (*given, ratio, *rest), limit)]
        given = (*given, generator.choice(possible or [coarsest(spec)]))
    return given


def positions(spec: Beacon, given: Sequence[int], tokens: int | None = None) -> int:
    """Most positions that a document reaches, whose windows but the last take the `given` ratios.

    tokens: of the document; by default its last window is full.
    """
    memory = most = 0
    for at, ratio in enumerate(given):
        most = max(most, memory + spec.window + (kept(spec, ratio) if ratio else 0))
        memory += kept(spec, ratio) + (spec.sink if at == 0 and ratio else 0)
    last = spec.window if tokens is None else tokens - len(given) * spec.window
    return max(most, memory + last)


def _within(spec: Beacon, given: Sequence[int], limit: int | None) -> bool:
    return limit is None or positions(spec, given) <= limit


def _fine_first(spec: Beacon) -> list[int]:
    return sorted(spec.ratios, key=lambda ratio: kept(spec, ratio), reverse=True)


def context(spec: Beacon, limit: int) -> int:
    """Most tokens that a model of `limit` positions can read with the coarsest ratio."""
    coarse = coarsest(spec)
    low, high = 1, 2 + limit // kept(spec, coarse)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _within(spec, (coarse,) * (middle - 1), limit) else (low, middle)
    return low * spec.window


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why a model with this `config.json` cannot have beacons; None where it can."""
    kind = config.get("model_type")
    if kind not in FAMILIES:
        return (
            f"activation beacons are proven on {', '.join(FAMILIES)} alone, and this model is of type {kind}"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    form = rope.get("rope_type") or rope.get("type") or "default"
    if form not in FIXED_ROPE:
        return (
            f"its position encoding ({form}) changes with the length of what is read, and keys in the memory were "
            "turned by an earlier one"
        )
    if config.get("partial_rotary_factor", 1.0) != 1.0:
        return "it turns only a part of each key (partial_rotary_factor)"
    sliding = config.get("sliding_window")
    if sliding and (kind == "mistral" or config.get("use_sliding_window")):
        return f"its layers look {sliding} tokens back (sliding_window), and would lose the memory"
    return None


def trained_parameters(facts: ModelFacts, spec: Beacon) -> int:
    """Weights of the beacons: the projections' (the last layer has no q) and the embedding."""
    heads = facts.heads * facts.head_dim
    total = facts.hidden
    for name in spec.projections:
        out = heads if name == "q" else facts.kv
        layers = facts.layers - (1 if name == "q" else 0)
        total += layers * (spec.rank * (facts.hidden + out) if spec.rank else facts.hidden * out)
    return total


def activations(
    facts: ModelFacts, spec: Beacon, *, rows: int, length: int, width: float, checkpointing: bool
) -> int:
    """Bytes of the activations of `rows` documents of `length` tokens under the ratios that take most.

    width: 1 for 16-bit arithmetic, 2 for 32-bit.
    """
    windows = beacon.windows_of(length, spec.window)
    finest = beacon.adapted(spec, windows, facts.positions)
    choice = (finest,) if spec.draw == "adapt" else tuple(spec.ratios)
    kept = max(beacon.kept(spec, ratio) for ratio in choice)
    beacons = max((beacon.kept(spec, ratio) for ratio in choice if ratio), default=0)
    memory = min((windows - 1) * kept + spec.sink, facts.positions or length)
    read = length + (windows - 1) * beacons
    layer = width * (22.7 * facts.hidden + 11.9 * facts.intermediate + 4.5 * facts.kv)
    pieces = width * 4 * facts.kv * facts.layers * memory  # keys and values that stay
    # Attention with a mask repeats the keys and values of each group of heads.
    key = width * 4 * (facts.kv + facts.heads * facts.head_dim)
    if checkpointing:
        # Beside each layer's input: what the last one gives, normalized, and without the beacons.
        inputs = width * 2 * facts.hidden * (facts.layers + 3) * read
        one = (spec.window + beacons) * layer + 2 * key * (memory + spec.window)
        return int(rows * (inputs + pieces + one))
    per_token = width * (16 * facts.hidden + 8 * facts.intermediate + 4.1 * facts.kv)
    seen = sum(min(at * kept, memory) + spec.window for at in range(windows))
    return int(rows * (facts.layers * (per_token * read + key * seen) + pieces))
