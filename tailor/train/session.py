"""A run on one worker, as the loop's parts and probes see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from tailor.batches import Batches
from tailor.methods import Method
from tailor.models.causal import CausalModel
from tailor.models.documents import Collator
from tailor.plan import Plan
from tailor.store import Store
from tailor.tokens import TokenStore
from tailor.train.host import Host


@dataclass(frozen=True)
class Session:
    """Everything of a run that stays the same from its first step to its last."""

    plan: Plan
    host: Host
    run: Store
    tokens: TokenStore
    batches: Batches
    """Of the training split."""
    evaluation: Batches
    """Of the evaluation split."""
    method: Method
    model: CausalModel
    weights: int
    """Of the whole model, trained and frozen."""
    reference: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Log-probability of each example of a split under the reference model, where they were computed before."""

    @property
    def device(self) -> torch.device:
        return self.host.device

    def autocast(self) -> torch.autocast:
        """The plan's arithmetic, as a context."""
        return autocast(self.plan, self.device)

    def collator(self, name: Literal["train", "evaluation"]) -> Collator:
        """Reads rows of a split for this model."""
        return make_collator(self.plan, self.tokens, self.model, name, self.reference.get(name))

    def say(self, message: str) -> None:
        """One line for the user, from rank 0."""
        if self.host.rank == 0:
            self.host.report({"kind": "status", "message": message})


def autocast(plan: Plan, device: torch.device) -> torch.autocast:
    """The plan's arithmetic, as a context."""
    dtype = torch.float16 if plan.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=plan.precision != "fp32")


def make_collator(
    plan: Plan,
    tokens: TokenStore,
    model: CausalModel,
    name: Literal["train", "evaluation"],
    reference: np.ndarray | None = None,
) -> Collator:
    """Reads rows of a split for a model. reference: float32[n], a number of each example that comes with it."""
    return Collator(
        tokens.split(name),
        model.layout,
        packs=plan.pack,
        max_length=plan.max_length,
        pad_to=plan.row_length if plan.compile else None,
        reference=reference,
    )


Probe = Callable[[Session, Literal["start", "end"]], None]
"""Called on every rank before the first step and after the last one."""
