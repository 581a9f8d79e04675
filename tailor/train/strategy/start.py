"""Load a strategy's model from the plan: unsharded or sharded."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from tailor.models import prefix_lm, sharded_load
from tailor.models.causal import CausalModel, Parameters
from tailor.models.embedding.embedder import fit_to_embed, prove_embedding, prove_prefix_lm
from tailor.models.load import load_for_training
from tailor.plan import Plan


def load_unsharded(plan: Plan, device: torch.device) -> CausalModel:
    """Load the full model on this worker's device."""
    scores = plan.method.ranked_passages is not None
    model = load_for_training(plan.model, device=device, scores=scores, **_settings(plan))
    if (embedding := plan.method.embedding) is not None:
        fit_to_embed(model, embedding, seed=plan.batches.seed)
        prove_embedding(model, embedding, plan.precision)
    if plan.method.prefix_lm:
        prove_prefix_lm(model, plan.precision)
        prefix_lm.enable(model.base)
    return model


def load_sharded(
    plan: Plan, rank: int, world: int, device: torch.device, shard: sharded_load.ShardModule
) -> tuple[CausalModel, Parameters]:
    """Load the model sharded by `shard`; returns it with its numbers of parameters."""
    return sharded_load.load_sharded(
        plan.model,
        shard,
        rank=rank,
        world=world,
        device=device,
        embeds=plan.method.embedding,
        prefix=plan.method.prefix_lm,
        scores=plan.method.ranked_passages is not None,
        **_settings(plan),
    )


def _settings(plan: Plan) -> dict[str, Any]:
    return {
        "precision": plan.precision,
        "frozen_dtype": plan.frozen_dtype,
        "pack": plan.batches.pack,
        "activation_checkpointing": plan.activation_checkpointing,
        "activation_offloading": plan.activation_offloading,
        "tiled_mlp": plan.tiled_mlp,
        "seed": plan.batches.seed,
        "tokens": plan.pass_tokens,
    }


def join_group(device: torch.device) -> None:
    """Make a process group of one, for a single worker that runs in the process of the command."""
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
