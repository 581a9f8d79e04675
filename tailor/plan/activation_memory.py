"""Activation memory of a training step: the tensors of a decoder layer that its backward pass needs, counted one by one.

The layer is Llama's: two RMSNorms, attention over packed documents, a gated feed-forward block. What is saved depends on
what is trained: a frozen projection needs no input, a frozen norm no normalized copy. `tests/plan/test_saved_tensors.py`
compares every term with the tensors that autograd really saves. Letters, per token: H hidden size, Q width of all query
heads, K of all key heads, I inner width of the feed-forward block; a bytes of a computed element, r bytes of an element of
the residual stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tailor.plan.facts import ModelFacts
from tailor.spec.adapter import Adapter

MLP_TILE_BYTES = 64 * 2**20
"""Inner activations of one tile of `train.tiled_mlp`, in float32."""

ATTENTION_INPUTS = frozenset(("q_proj", "k_proj", "v_proj"))
OUTPUT = frozenset(("o_proj",))
FEED_FORWARD_INPUTS = frozenset(("gate_proj", "up_proj"))
DOWN = frozenset(("down_proj",))
_KNOWN = ATTENTION_INPUTS | OUTPUT | FEED_FORWARD_INPUTS | DOWN


@dataclass(frozen=True)
class Activations:
    """Bytes of the activations of a worker's tokens."""

    inputs: float
    """Inputs of the checkpointed layers."""
    kept: float
    """Activations that the other layers keep for their backward pass."""
    peak: float
    """The most that exists during the backward pass of a layer, besides `inputs`."""


@dataclass(frozen=True)
class Trained:
    """What of a layer is trained, which decides what its backward pass needs.

    adapter: None if all weights are. residual: bytes of an element of the residual stream, r. width: a. mask: bytes of an
    element of a dropout mask. casts: all weights are stored in the type of computation, also trained ones.
    """

    adapter: Adapter | None
    residual: int
    width: int
    mask: int = 1
    casts: bool = False

    def inputs(self, names: frozenset[str]) -> float:
        """Bytes per element that the inputs of these projections need together, which read the same tensor.

        With dropout every projection has a copy and a mask of its own. Autocast makes a copy for every projection if the
        residual stream has another type; otherwise they share the tensor. A projection without an adapter needs no input.
        """
        count = self._adapted(names)
        if not count:
            return 0.0
        if self.adapter is not None and self.adapter.dropout:
            return float(count * (self.width + self.mask))
        return float(self.width * (count if self.residual != self.width and len(names) > 1 else 1))

    def rank(self) -> float:
        """Bytes per token of the outputs of all A matrices of a layer."""
        return self.width * (self.adapter.rank if self.adapter else 0) * self._adapted(_KNOWN)

    @property
    def of_experts(self) -> int:
        """Bytes of an element of the routed experts, whose grouped products have the type of the weights."""
        return 4 if self.adapter is None and not self.casts else self.width

    @property
    def norms(self) -> bool:
        """Whether the weights of the norms are trained, which need the normalized hidden states."""
        return self.adapter is None or any("norm" in name for name in self.adapter.modules_to_save)

    def _adapted(self, names: frozenset[str]) -> int:
        if self.adapter is None or self.adapter.target_modules == "all-linear":
            return len(names)
        targets = {name.rsplit(".", 1)[-1] for name in self.adapter.target_modules}
        unknown = bool(targets - _KNOWN)  # modules of other families: all inputs are assumed to be needed
        return len(names) if unknown else len(names & targets)


def _experts(facts: ModelFacts, trained: Trained) -> float:
    """Bytes per token that the routed experts keep.

    For each of its experts, a token has: the gate and its activation, the other factor, and the output. Trained experts and
    adapters also need the token's copy of the input, and the product of the factors. A trained router needs its input, and
    any router its probabilities in float32, and the chosen experts with three permutations as int64.
    """
    adapter = trained.adapter
    needs_inputs = adapter is None or adapter.experts is True
    each = facts.hidden * (2 if needs_inputs else 1) + facts.intermediate * (4 if needs_inputs else 3)
    if adapter is not None and adapter.experts is True:
        each += 2 * (-(-adapter.rank // 8) * 8)  # filled up to a multiple of 8
    router = 4 * facts.experts + 4 * 8 * facts.active_experts
    router += trained.width * facts.hidden if adapter is None or adapter.router else 0
    return float(facts.active_experts * trained.of_experts * each + router)


def _experts_backward(facts: ModelFacts, trained: Trained, kept: float) -> float:
    """The most bytes per token that the backward pass through a layer's experts needs. kept: `_experts`.

    First, while `kept` is whole, the gradients of the output of each of a token's experts, in float32: as they are summed,
    in the experts' order, and a buffer of zeros for them. Later, as in a dense block, and the gradients of each expert's
    input and output.
    """
    at_sum = kept + 3 * 4.0 * facts.active_experts * facts.hidden
    each = trained.of_experts * (6.0 * facts.intermediate + 2.0 * facts.hidden)
    return max(at_sum, facts.active_experts * each)


def at_loss(trained: Trained) -> float:
    """Bytes per element of the hidden states during the loss: in the final norm, after it, and their gradient."""
    cast = 2.0 * trained.width if trained.width != trained.residual else 0.0
    return 4.0 + (4.0 if trained.norms else 0.0) + 2.0 * trained.residual + cast


def activations(
    facts: ModelFacts, trained: Trained, tokens: float, *, every: int, tiled: bool, parts: int
) -> Activations:
    """The activations of a worker's `tokens` tokens.

    every: one of `every` layers is checkpointed, 0 for none. parts: number of workers that a sequence is split over.
    """
    hidden, width, residual = facts.hidden, trained.width, trained.residual
    queries = facts.heads * facts.head_dim or hidden
    # Ulysses repeats the key-value heads if there are fewer of them than workers.
    keys = facts.kv * (math.lcm(facts.kv_heads, parts) // facts.kv_heads if facts.kv_heads else 1)
    normalized = 8.0 if trained.norms else 0.0  # of both norms, in float32
    read = trained.inputs(ATTENTION_INPUTS)
    dense = facts.experts == 1 or facts.shared
    widened = trained.inputs(FEED_FORWARD_INPUTS) if dense else 0.0
    # Queries, keys and values after RoPE, the output of attention, and its copy for the output projection.
    attention = 2.0 * width * (queries + keys) + trained.inputs(OUTPUT) * queries + trained.rank()
    # The inputs of both norms, in float32, and what the projections read. A tile's checkpoint needs its input in any case,
    # which a norm that is trained beside an adapter returns in float32.
    tile_input = 4 if trained.norms and trained.adapter is not None else residual
    norms = (8.0 + normalized + read + (tile_input if tiled else widened)) * hidden
    inner = 3 * width + trained.inputs(DOWN)  # the gate, its activation, the other factor; their product
    routed = _experts(facts, trained) if facts.experts > 1 else 0.0
    block = routed + inner * (facts.shared if facts.experts > 1 else facts.intermediate)
    saved = norms + attention + (0.0 if tiled else block)
    # Backward pass through a feed-forward block: three inner gradients, when the product is no longer needed. Through a
    # norm: its gradient and four or five intermediate results in float32.
    of_norm = 16.0 if residual == 4 else 20.0
    inner_peak = 6.0 * width * facts.intermediate
    if facts.experts > 1:
        inner_peak = _experts_backward(facts, trained, routed) + 6.0 * width * facts.shared
    own_input = (
        4.0 if residual == 4 else 0.0
    )  # the first norm's input is the layer's: it is in `inputs` already
    before = (
        8.0 + normalized + read + residual - own_input
    ) * hidden + attention  # what is left at the second norm
    after_tiles = before + (of_norm - normalized / 2) * hidden
    layer = before + widened * hidden + inner_peak
    backward = max(after_tiles, layer)
    if tiled:
        backward = min(backward, after_tiles + 6.0 * width * MLP_TILE_BYTES / 4 / tokens)
    rotations = 2.0 * width * facts.head_dim  # cosines and sines of RoPE, which all layers share
    recomputed = -(-facts.layers // every) if every else 0
    kept = tokens * ((facts.layers - recomputed) * saved + rotations)
    # The backward pass of the final norm, or of the last layer if it is kept.
    last_is_kept = not every or (facts.layers - 1) % every
    own = inner_peak - block if last_is_kept and not tiled else 0.0
    peak = kept + tokens * max(own, (of_norm + 4.0) * hidden)
    if recomputed:
        # When it reaches the last checkpointed layer, the activations of the layers after it are freed.
        layers_before = (recomputed - 1) * (every - 1)
        peak = max(peak, tokens * (layers_before * saved + backward + rotations))
    return Activations(recomputed * tokens * residual * hidden, kept, peak)
