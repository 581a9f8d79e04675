"""Every strategy as a recipe writes it, and a run under one of them."""

from __future__ import annotations

from typing import Any

from tailor.plan import Plan
from tailor.train import loop
from tests.helpers.hosts import PlainHost

STRATEGIES: dict[str, Any] = {
    "ddp": "ddp",
    "fsdp": "fsdp",
    "zero-1": {"name": "deepspeed", "stage": 1},
    "zero-2": {"name": "deepspeed", "stage": 2},
    "zero-3": {"name": "deepspeed", "stage": 3},
}


def under(name: str, workers: int = 2) -> dict[str, Any]:
    """The recipe's `scale` section."""
    return {"workers": workers, "strategy": STRATEGIES[name]}


def curve(host: PlainHost, plan: Plan) -> dict[str, list[float]]:
    """Losses and gradient norms of the steps, and losses of the evaluations. The host is empty afterwards."""
    loop.run(plan, host)
    found = {
        "losses": host.losses(),
        "norms": [record["grad_norm"] for record in host.of("train")],
        "evaluations": [record["loss"] for record in host.of("evaluation")],
    }
    host.records.clear()
    return found


def curves(host: PlainHost, plans: dict[str, Plan]) -> dict[str, dict[str, list[float]]]:
    """The curve of each plan, one after another in the same processes."""
    return {name: curve(host, plan) for name, plan in plans.items()}
