"""Activation beacons (Zhang et al. 2024, arXiv 2401.03462): compression ratios, positions, memory, supported models.

A document is read in windows of `window` tokens. From each window but the last, the memory keeps the keys and values of
its beacons (window / ratio of them; with ratio 0, of all its tokens), and later windows attend to the memory.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from tailor.plan import beacon
from tailor.plan.facts import ModelFacts
from tailor.spec.model import Beacon

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose attention with beacons is tested against an independent implementation."""
FIXED_ROPE = ("default", "linear", "yarn", "llama3")
"""RoPE types whose frequencies do not depend on the sequence length, so that a key can be rotated to another position."""


def windows_of(tokens: int, window: int) -> int:
    """Number of windows of a document of `tokens` tokens; the last one may be shorter."""
    return -(-tokens // window)


def kept(spec: Beacon, ratio: int) -> int:
    """Number of keys that the memory keeps of a full window: its beacons, or all its tokens for ratio 0."""
    return spec.window // ratio if ratio else spec.window


def adapted(spec: Beacon, windows: int, limit: int | None = None, *, at_most: int | None = None) -> int:
    """The finest ratio with which a document of `windows` windows fits; the coarsest ratio, if none does.

    limit: the model's maximum positions, which the document must not exceed even after it has grown to `at_most` windows;
    this is the published rule (FlagEmbedding, research/Long_LLM/activation_beacon). `spec.memory` limits the keys of the
    memory too.
    """
    max_keys = spec.window if spec.memory == "window" else spec.memory
    fits = (
        ratio
        for ratio in _fine_first(spec)
        if (max_keys is None or (windows - 1) * kept(spec, ratio) <= max_keys)
        and _within(spec, (ratio,) * ((at_most or windows) - 1), limit)
    )
    return next(fits, coarsest(spec))


def coarsest(spec: Beacon) -> int:
    """The ratio that keeps the fewest keys."""
    return _fine_first(spec)[-1]


def ratios(
    spec: Beacon, windows: int, limit: int | None = None, *, seed: int = 0, step: int | None = None
) -> tuple[int, ...]:
    """The ratio of each window of a document. The last window has no beacons and no ratio.

    In training, ratios are drawn as `spec.draw` says, from those with which the document stays within the model's
    maximum positions (`limit`). The draw is a function of seed, step and number of windows, so it does not depend on
    workers or micro-batches. With step None (evaluation, generation) the length of the document determines the ratio.
    """
    if step is None or spec.draw == "adapt":
        return (adapted(spec, windows, limit),) * (windows - 1)
    generator = random.Random(f"beacon {seed} {step}")
    if spec.draw == "mixed" and generator.random() < 0.5:
        return (adapted(spec, windows, limit),) * (windows - 1)
    drawn: tuple[int, ...] = ()
    for remaining in range(windows - 2, -1, -1):
        rest = (coarsest(spec),) * remaining
        possible = [ratio for ratio in spec.ratios if _within(spec, (*drawn, ratio, *rest), limit)]
        drawn = (*drawn, generator.choice(possible or [coarsest(spec)]))
    return drawn


def positions(spec: Beacon, given: Sequence[int], tokens: int | None = None) -> int:
    """The largest number of positions that a document uses. given: the ratios of all windows but the last.

    tokens: length of the document; by default its last window is full.
    """
    memory = largest = 0
    for index, ratio in enumerate(given):
        largest = max(largest, memory + spec.window + (kept(spec, ratio) if ratio else 0))
        memory += kept(spec, ratio) + (spec.sink if index == 0 and ratio else 0)
    last = spec.window if tokens is None else tokens - len(given) * spec.window
    return max(largest, memory + last)


def _within(spec: Beacon, given: Sequence[int], limit: int | None) -> bool:
    return limit is None or positions(spec, given) <= limit


def _fine_first(spec: Beacon) -> list[int]:
    return sorted(spec.ratios, key=lambda ratio: kept(spec, ratio), reverse=True)


def context(spec: Beacon, limit: int) -> int:
    """The longest document, in tokens, that a model with `limit` positions can read with the coarsest ratio."""
    coarse = coarsest(spec)
    low, high = 1, 2 + limit // kept(spec, coarse)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _within(spec, (coarse,) * (middle - 1), limit) else (low, middle)
    return low * spec.window


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why a model with this `config.json` cannot have beacons; None if it can."""
    kind = config.get("model_type")
    if kind not in FAMILIES:
        return f"beacons support the model types {', '.join(FAMILIES)}, and this model has type {kind}"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    form = rope.get("rope_type") or rope.get("type") or "default"
    if form not in FIXED_ROPE:
        return (
            f"its RoPE type ({form}) changes its frequencies with the sequence length, so the keys in the memory would have "
            "the wrong rotation"
        )
    if config.get("partial_rotary_factor", 1.0) != 1.0:
        return "its RoPE rotates only a part of each head (partial_rotary_factor)"
    sliding = config.get("sliding_window")
    if sliding and (kind == "mistral" or config.get("use_sliding_window")):
        return f"its layers attend only to the last {sliding} tokens (sliding_window), so they would not see the memory"
    return None


def trained_parameters(facts: ModelFacts, spec: Beacon) -> int:
    """Number of trained weights: the beacon's projections (the last layer has no q) and its embedding."""
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
    """Bytes of the activations of `rows` documents of `length` tokens, with the ratios that need the most memory.

    width: 1 for 16-bit arithmetic, 2 for 32-bit. The factors are measured bytes per element, as in `tailor.plan.memory`.
    """
    windows = beacon.windows_of(length, spec.window)
    ratio = beacon.adapted(spec, windows, facts.positions)
    choice = (ratio,) if spec.draw == "adapt" else tuple(spec.ratios)
    kept = max(beacon.kept(spec, each) for each in choice)
    beacons = max((beacon.kept(spec, each) for each in choice if each), default=0)
    memory = min((windows - 1) * kept + spec.sink, facts.positions or length)
    read = length + (windows - 1) * beacons
    layer = width * (22.7 * facts.hidden + 11.9 * facts.intermediate + 4.5 * facts.kv)
    memory_cache = width * 4 * facts.kv * facts.layers * memory  # keys and values in the memory
    # With a mask, attention expands keys and values to all query heads (no grouped-query kernel).
    key = width * 4 * (facts.kv + facts.heads * facts.head_dim)
    if checkpointing:
        # Besides each layer's input: the last layer's output, the same normalized, and the same without beacons.
        inputs = width * 2 * facts.hidden * (facts.layers + 3) * read
        recomputed = (spec.window + beacons) * layer + 2 * key * (memory + spec.window)
        return int(rows * (inputs + memory_cache + recomputed))
    per_token = width * (16 * facts.hidden + 8 * facts.intermediate + 4.1 * facts.kv)
    attended = sum(min(index * kept, memory) + spec.window for index in range(windows))
    return int(rows * (facts.layers * (per_token * read + key * attended) + memory_cache))
