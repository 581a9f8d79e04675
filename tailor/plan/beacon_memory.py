"""What beacons add to the forecast of a worker's memory: their weights, and the windows of a document.

The loss flows through all windows, so what the backward pass needs of each is there at once; attention alone sees no
more than the memory and one window. The same bytes per token and layer as in `tailor.plan.memory`.
"""

from __future__ import annotations

from tailor.plan import beacon
from tailor.plan.facts import ModelFacts
from tailor.spec.model import Beacon


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
        # Beside each layer's input: what the last one gives, normalised, and without the beacons.
        inputs = width * 2 * facts.hidden * (facts.layers + 3) * read
        one = (spec.window + beacons) * layer + 2 * key * (memory + spec.window)
        return int(rows * (inputs + pieces + one))
    per_token = width * (16 * facts.hidden + 8 * facts.intermediate + 4.1 * facts.kv)
    seen = sum(min(at * kept, memory) + spec.window for at in range(windows))
    return int(rows * (facts.layers * (per_token * read + key * seen) + pieces))
