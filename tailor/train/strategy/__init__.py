"""Strategies: how weights, gradients and optimizer state are distributed over the workers. One file each."""

from __future__ import annotations

from pkgutil import resolve_name

from tailor.plan import Plan
from tailor.train.host import Host
from tailor.train.strategy.base import Shard, Sharded, Strategy


def make_strategy(plan: Plan, host: Host) -> Strategy:
    """Make the plan's strategy. Only the module of that strategy is imported."""
    made: Strategy = resolve_name(plan.strategy.implementation)(plan, host)
    return made


__all__ = ["Shard", "Sharded", "Strategy", "make_strategy"]
