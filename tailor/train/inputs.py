"""The model's inputs: the autocast context, and the collator that reads micro-batches."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from tailor.data.token_store import TokenStore
from tailor.models.causal import CausalModel
from tailor.models.collator import Collator
from tailor.models.pose import SkippedPositions
from tailor.models.sequence import SequenceGroup
from tailor.plan import Plan


def autocast(plan: Plan, device: torch.device) -> torch.autocast:
    """The autocast context for the plan's precision."""
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
    """Make the collator that reads rows of a split for a model.

    reference: float32[examples], log-probabilities under the reference model. sequence: the workers that split each stream.
    """
    pose = None
    if plan.pose is not None and plan.pose.length is not None and name == "train":
        pose = SkippedPositions(plan.pose.length, plan.pose.chunks, plan.batches.seed)
    return Collator(
        tokens.split(name),
        model.layout,
        packs=plan.batches.pack,
        max_length=plan.batches.max_length,
        reference=reference,
        sequence=sequence,
        noise_alpha=plan.method.embedding_noise if name == "train" else 0.0,
        seed=plan.batches.seed,
        pose=pose,
        share_prefixes=model.shares_prefixes,
    )
