"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from tailor.spec.optim import Optim


def build_optimizer(spec: Optim, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer over the trained weights. Weight decay applies to matrices only, not to biases and norms."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if len(shape_of(p)) >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in trained if len(shape_of(p)) < 2], "weight_decay": 0.0},
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
    import bitsandbytes

    match spec.optimizer:
        case "lion":
            return bitsandbytes.optim.Lion(groups, lr=rate, betas=betas)
        case "adamw_8bit":
            return bitsandbytes.optim.AdamW8bit(groups, lr=rate, betas=betas, eps=spec.eps)
        case "paged_adamw":
            return bitsandbytes.optim.PagedAdamW(groups, lr=rate, betas=betas, eps=spec.eps)
        case "paged_adamw_8bit":
            return bitsandbytes.optim.PagedAdamW8bit(groups, lr=rate, betas=betas, eps=spec.eps)
    raise AssertionError(spec.optimizer)


def shape_of(parameter: Any) -> tuple[int, ...]:
    """Shape of the full weight. DeepSpeed stores it in `ds_shape`, because it empties a sharded weight."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def decayed_first(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of weights in the order of `build_optimizer`'s groups: matrices first."""
    return sorted(shapes, key=lambda name: len(shapes[name]) < 2)


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
