"""How a model's weights are held by the workers, one strategy per file."""

from __future__ import annotations

from pkgutil import resolve_name

from tailor.plan import Plan
from tailor.train.host import Host
from tailor.train.strategy.base import Shard, Sharded, Strategy


def make_strategy(plan: Plan, host: Host) -> Strategy:
    """The plan's strategy. Only its own module is imported."""
    made: Strategy = resolve_name(plan.strategy.implementation)(plan, host)
    return made


__all__ = ["Shard", "Sharded", "Strategy", "make_strategy"]
