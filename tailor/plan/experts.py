"""The sizes of a mixture of experts, as the many families name them in their `config.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailor.spec.adapter import Adapter
    from tailor.spec.model import Model

Stacks = Mapping[str, tuple[int, int, int]]
"""Name of each weight that holds a layer's routed experts in one tensor -> experts, inputs and outputs of each."""
_TOTAL = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "top_k_experts")
_SHARED_WIDTH = (
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "moe_shared_expert_intermediate_size",
)
_SHARED_COUNT = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")


def total(config: Mapping[str, Any]) -> int:
    """Number of routed experts per layer; 1 for a model without them."""
    return _first(config, _TOTAL) or 1


def active(config: Mapping[str, Any]) -> int:
    """Number of experts that a token is routed to; 0 for a model without them."""
    return _first(config, _ACTIVE) if total(config) > 1 else 0


def shared_width(config: Mapping[str, Any]) -> int:
    """Inner width of the experts that every token goes through, together."""
    if total(config) == 1:
        return 0
    count = _first(config, _SHARED_COUNT)
    return _first(config, _SHARED_WIDTH) or count * _first(config, ("moe_intermediate_size",))


def estimated_stacks(layers: int, experts: int, hidden: int, intermediate: int, *, gated: bool) -> Stacks:
    """The stacks of a model in each of whose layers the experts are routed. gated: they have a gate."""
    outputs = (2 if gated else 1) * intermediate
    sizes = {"gate_up_proj": (experts, hidden, outputs), "down_proj": (experts, intermediate, hidden)}
    return {
        f"model.layers.{layer}.mlp.experts.{name}": size
        for layer in range(layers)
        for name, size in sizes.items()
    }


def router_losses(config: Mapping[str, Any], model: Model) -> int:
    """How many losses the routers have: for balanced loads, and the z-loss. See `model.router_aux_loss`."""
    weight = model.router_aux_loss
    if weight is None and config.get("output_router_logits"):
        weight = config.get("router_aux_loss_coef")
    return bool(weight) + bool(model.router_z_loss)


def largest_stack(stacks: Stacks) -> int:
    """Number of weights of the largest stack; 0 without."""
    return max((math.prod(sizes) for sizes in stacks.values()), default=0)


def adapter_parameters(stacks: Stacks, adapter: Adapter) -> int:
    """Number of weights of an adapter on routed experts."""
    if adapter.experts is not True:
        return 0
    return sum(
        experts * adapter.weights(name, inputs, outputs)
        for name, (experts, inputs, outputs) in stacks.items()
    )


def copied_bytes(stacks: Stacks, adapter: Adapter, width: int) -> int:
    """Bytes of the copies of an adapter's weights that the products of all layers keep for the backward pass.

    In the layout of the products, and in the type of computation, whose elements have `width` bytes: of A, if it has another
    type or rank, and of B. The rank is filled up to a multiple of 8.
    """
    total = 0
    for name, (experts, inputs, outputs) in stacks.items() if adapter.experts is True else ():
        rank = adapter.rank_of(name)
        filled = -(-rank // 8) * 8
        total += width * experts * filled * (outputs + (inputs if width < 4 or filled > rank else 0))
    return total


def largest(value: Any) -> int:
    """A number of a `config.json`; the largest, if it has one per layer (Gemma 3n, HunYuan)."""
    return max(map(int, value), default=0) if isinstance(value, list | tuple) else int(value)


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    config = {**config, **(config.get("ffn_config") or {})}  # DBRX
    return next((largest(config[name]) for name in names if config.get(name)), 0)
