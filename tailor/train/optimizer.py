"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from tailor.spec.optim import Optim


def build_optimizer(spec: Optim, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer over the trained weights, with weight decay on those that `decayed` names."""
    names, trained = set(decayed(model)), list(trained_parameters(model))
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trained if name in names], "weight_decay": spec.weight_decay},
        {"params": [p for name, p in trained if name not in names], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate, betas = spec.learning_rate, spec.betas
    match spec.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=spec.eps, fused=True)
        case "sgd":
            groups = [{"params": group["params"]} for group in groups]
            return torch.optim.SGD(groups, lr=rate, momentum=spec.momentum)
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=rate)
    import bitsandbytes.optim as bnb

    match spec.optimizer:
        case "lion":
            return bnb.Lion(groups, lr=rate, betas=betas)
        case "paged_adamw":
            return bnb.PagedAdamW(groups, lr=rate, betas=betas, eps=spec.eps)
        case "adamw_8bit":
            return _tables_in_32_bits(bnb.AdamW8bit(groups, lr=rate, betas=betas, eps=spec.eps), model)
        case "paged_adamw_8bit":
            return _tables_in_32_bits(bnb.PagedAdamW8bit(groups, lr=rate, betas=betas, eps=spec.eps), model)
    raise AssertionError(spec.optimizer)


def _tables_in_32_bits(optimizer: Any, model: nn.Module) -> Any:
    """Keep the state of embedding tables in 32 bits, as bitsandbytes and Hugging Face's Trainer advise (arXiv 2110.02861, 2.3).

    The gradients of rare tokens are small, and blocks of 8 bits lose them.
    """
    # A manager of its own: the global one finds weights by their number, in all optimizers of the process.
    optimizer.mng = object.__new__(type(optimizer.mng))
    optimizer.mng.initialize()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            optimizer.mng.register_module_override(module, "weight", {"optim_bits": 32})
    return optimizer


def shape_of(parameter: Any) -> tuple[int, ...]:
    """Shape of the full weight. DeepSpeed stores it in `ds_shape`, because it empties a sharded weight."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


_NORM = re.compile(r"Norm(\d[dD]|Gated)?$")
"""In the name of a class: a normalization."""
_NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
"""In the lower-case name of a weight: no weight decay, as in Hugging Face's Trainer."""
_STATE_SPACE = ("A_log", "D", "dt_bias")
"""Weights of state-space mixers without weight decay (Gu and Dao 2023). Loading a model drops their `_no_weight_decay`."""


def decayed(model: nn.Module) -> list[str]:
    """Names of the trained weights with weight decay: matrices that belong to no normalization and are no bias.

    By the type of their module and by their name, as in Hugging Face's Trainer, because norms and biases of experts and of
    heads have two dimensions too. Weights that their model marks with `_no_weight_decay` have none.
    """
    excluded: set[int] = set()
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.LayerNorm | nn.RMSNorm) or _NORM.search(type(module).__name__):
            excluded |= {id(parameter) for parameter in module.parameters()}
        if "A_log" in own:
            excluded |= {id(own[name]) for name in _STATE_SPACE if name in own}
    return [
        name
        for name, parameter in trained_parameters(model)
        if len(shape_of(parameter)) >= 2
        and id(parameter) not in excluded
        and not _NOT_DECAYED.search(name.lower())
        and not getattr(parameter, "_no_weight_decay", False)
    ]


def optimizer_order(model: nn.Module) -> list[str]:
    """Names of the trained weights in the order of `build_optimizer`'s groups, in which its state numbers them."""
    first = set(decayed(model))
    return sorted((name for name, _ in trained_parameters(model)), key=lambda name: name not in first)


def numbering(state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the weights by their number in a saved optimizer state. shapes: of the trained weights, in the model's order."""
    if NAMES in state:
        return list(state[NAMES])
    return sorted(shapes, key=lambda name: len(shapes[name]) < 2)  # saved before: all matrices first


NAMES = "names"
"""Key of a saved optimizer state: the names of the weights in the order of their numbers."""


def learning_rate(spec: Optim, step: int, steps: int, warmup: int) -> float:
    """Learning rate of a step, counted from 0. It is above 0 in the first step of the warm-up and in the last step: a rate of
    0 would waste a step."""
    if step < warmup:
        return spec.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    match spec.schedule:
        case "constant":
            return spec.learning_rate
        case "linear":
            return spec.learning_rate * (1 - done)
        case "cosine":
            return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def trained_parameters(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """(name, weight) of every trained weight, in the model's order."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)
