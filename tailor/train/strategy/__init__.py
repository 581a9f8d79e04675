"""How a model's weights are held by the workers, one strategy per file."""

from __future__ import annotations

from tailor.plan import Plan
from tailor.train.host import Host
from tailor.train.strategy.base import Part, Shared, Strategy


def make_strategy(plan: Plan, host: Host) -> Strategy:
    """The plan's strategy."""
    if plan.strategy.name == "fsdp":
        from tailor.train.strategy.fsdp import FullySharded

        return FullySharded(plan, host)
    if plan.strategy.name == "deepspeed":
        from tailor.train.strategy.deepspeed import Zero

        return Zero(plan, host)
    from tailor.train.strategy.ddp import DataParallel

    return DataParallel(plan, host)


__all__ = ["Part", "Shared", "Strategy", "make_strategy"]
