"""What goes into the model, and in which arithmetic."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from tailor.data.token_store import TokenStore
from tailor.models.causal import CausalModel
from tailor.models.documents import Collator
from tailor.models.sequence import SequenceGroup
from tailor.plan import Plan


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
    sequence: SequenceGroup | None = None,
) -> Collator:
    """Reads rows of a split for a model. reference: float32[n], a number of each example that comes with it.

    sequence: the workers that hold each sequence together.
    """
    return Collator(
        tokens.split(name),
        model.layout,
        packs=plan.batches.pack,
        max_length=plan.batches.max_length,
        pad_to=plan.row_length if plan.compile else None,
        reference=reference,
        sequence=sequence,
    )
