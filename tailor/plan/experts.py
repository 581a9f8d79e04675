"""The sizes of a mixture of experts, as the many families name them in their `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def largest(value: Any) -> int:
    """A number of a `config.json`; the largest, if it has one per layer (Gemma 3n, HunYuan)."""
    return max(map(int, value), default=0) if isinstance(value, list | tuple) else int(value)


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    config = {**config, **(config.get("ffn_config") or {})}  # DBRX
    return next((largest(config[name]) for name in names if config.get(name)), 0)
