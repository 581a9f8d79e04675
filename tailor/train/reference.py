"""The reference model of a preference method, made before the first step from the loaded model.

Log-probabilities that are computed once before training are stored next to the tokens:

TOKENS/reference-KEY/train.npy        float32[examples of the split]
TOKENS/reference-KEY/evaluation.npy
TOKENS/reference-KEY/COMMIT           written last

KEY is a hash of the tokens, the model's weights and config, precision, attention and device type.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist

from tailor.data.batches import Batches
from tailor.data.rows import share
from tailor.data.token_store import SPLITS, TokenStore
from tailor.methods.reference import AdapterOff, Copy, Precomputed, Reference
from tailor.models.causal import CausalModel
from tailor.models.compiled import compile_layers
from tailor.plan import Plan
from tailor.store import Store, verified
from tailor.store.publication import Publication
from tailor.train.host import Host
from tailor.train.inputs import autocast, make_collator
from tailor.train.strategy import Strategy

Name = Literal["train", "evaluation"]


def open_reference(
    plan: Plan, host: Host, tokens: TokenStore, strategy: Strategy, batches: Mapping[Name, Batches]
) -> tuple[Reference | None, dict[str, np.ndarray]]:
    """The plan's reference model, and its precomputed log-probabilities, float32[examples], of each split."""
    match plan.reference:
        case None:
            return None, {}
        case "adapter_off":
            return AdapterOff(), {}
        case "copy":
            return Copy(frozen_copy(strategy.model, compiled=plan.compile)), {}
        case "precomputed":
            return Precomputed(), _values(plan, host, tokens, strategy, batches)


def frozen_copy(model: CausalModel, *, compiled: bool) -> CausalModel:
    """A frozen copy of the model. Its weights keep the dtype of training, so that equal weights give equal log-probabilities."""
    network = copy.deepcopy(model.network).requires_grad_(False)
    frozen = CausalModel(network, layout=model.layout, splits_head=model.splits_head).eval()
    if compiled:
        compile_layers(frozen.base)
    return frozen


def _values(
    plan: Plan, host: Host, tokens: TokenStore, strategy: Strategy, batches: Mapping[Name, Batches]
) -> dict[str, np.ndarray]:
    """Read the log-probabilities that an earlier run has stored, or compute them, shared among the workers."""
    store, name = Store(tokens.url), f"reference-{_key(plan, host, strategy)}"
    is_stored = torch.tensor(int(store.is_committed(name)) if host.rank == 0 else 0, device=host.device)
    if host.world > 1:
        dist.broadcast(is_stored, src=0)  # all workers must take the same branch
    if is_stored.item():
        with verified(store, name) as folder:
            return {split: np.load(folder / f"{split}.npy") for split in SPLITS}
    started = time.perf_counter()
    if host.rank == 0:
        count = sum(len(tokens.split(split)) for split in SPLITS)
        message = f"computing the reference log-probabilities of {count:,} examples"
        host.report({"kind": "status", "message": message, "phase": "reference"})
    values = {split: _computed(plan, host, tokens, strategy, split, batches[split]) for split in SPLITS}
    if host.rank == 0:
        with Publication(store, name) as made:
            for split, numbers in values.items():
                np.save(made.folder / f"{split}.npy", numbers)
        seconds = time.perf_counter() - started
        message = f"reference log-probabilities of {count:,} examples computed in {seconds:.1f} s"
        host.report({"kind": "status", "message": message})
    return values


@torch.no_grad()
def _computed(
    plan: Plan, host: Host, tokens: TokenStore, strategy: Strategy, split: Name, batches: Batches
) -> np.ndarray:
    """Log-probability of each example of a split under the model with its adapter off, float32[n]."""
    collator = make_collator(plan, tokens, strategy.model, split)
    values = torch.zeros(len(collator.split), device=host.device)  # float32[examples]
    rows = batches.rows()
    # A worker without rows computes one whose result is dropped: a forward pass may need all workers (FSDP).
    for _, part in share(rows, plan.micro_batch_size, host.rank, host.world):
        with autocast(plan, host.device):
            batch = collator(part or rows[:1]).to(host.device)
            log_probabilities = strategy.forward(AdapterOff().log_probabilities, batch)  # float32[D]
        if part:
            values[[example for row in part for example in row]] = log_probabilities
    if host.world > 1:
        dist.all_reduce(values)
    return values.cpu().numpy()


def _key(plan: Plan, host: Host, strategy: Strategy) -> str:
    """A hash of everything that the log-probabilities depend on."""
    import xxhash

    model = strategy.model
    config = {key: value for key, value in model.base.config.to_dict().items() if key != "_name_or_path"}
    facts = {
        "tokens": plan.fingerprint,
        "config": config,
        "precision": plan.precision,
        "attention": model.base.config._attn_implementation,
        "device": host.device.type,
    }
    digest = xxhash.xxh3_128(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, parameter in model.network.named_parameters():
        if parameter.requires_grad and plan.model.adapter is not None:
            continue  # the adapter, which is off for the reference
        digest.update(name.encode())
        for tensor in strategy.stored_tensors(parameter):
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return str(digest.hexdigest())
